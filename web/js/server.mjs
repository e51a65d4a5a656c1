// Asking our routes: an answer, or an error in the server's words, in the page's language.
import { api } from "../../scripts/api.js";
import { translated } from "./translated.mjs";

class Refused extends Error {
    constructor(message, status, fix) {
        super(message);
        this.status = status;
        this.fix = fix;
    }
}

async function answerOf(route, options) {
    const response = await api.fetchApi(route, options), said = `${response.status} ${response.statusText}`;
    const answer = await response.json().catch(() => null);
    if (!response.ok || answer === null) throw new Refused(translated(answer?.error ?? said), response.status, answer?.fix);
    return answer;
}

const address = (route, values) => `/lora_loom/${route}?${new URLSearchParams(values)}`;

export const get = (route, values = {}, signal = undefined) => answerOf(address(route, values), { cache: "no-store", signal });

// `body`: what is sent as JSON, or a text as it is.
export function post(route, body) {
    const text = typeof body === "string";
    return answerOf(`/lora_loom/${route}`, { method: "POST", headers: { "Content-Type": text ? "text/plain" : "application/json" }, body: text ? body : JSON.stringify(body) });
}

// For pictures, and for what is sent in other ways.
export const urlOf = (route, values) => api.apiURL(address(route, values));
