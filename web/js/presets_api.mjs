// What the page asks of the server about presets and configurations. Where there is no answer, what is wrong has been said.
import { get, post } from "./server.mjs";
import { told } from "./settings.mjs";

// Asked anew each time: presets are files that their owner may edit.
export const allPresets = async () => (await told(get("presets"))) ?? {};

export const readConfig = (text) => told(post("config", text));

export const savePreset = (name, values, replace = false) => told(post("presets", { name, values, replace }));
