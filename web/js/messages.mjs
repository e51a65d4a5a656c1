// From a text of the server to the page's language, by templates: {"rank {} is below {}: …": "… {2} … {1} …"} (tools/messages.py finds them in the sources).
// Knows neither page nor server. What no template matches stays as it is; what a user wrote stands in holes, and those are copied letter by letter.
//
// A template's holes: {} anything, {!r} what is quoted, {:g} a number, {is|are} one of these words. They count from 1. The translation's:
// {1} as it is, {1t} translated in turn, {1l} names and how many more, {1:甲|乙} by which of the words it was, {LoRAConfig.rank} and {LoRAConfig} the names that the canvas
// shows, {AutoCaption.7} the same for the input that hole 7 names.
const NUMBER = "[-+]?(?:[\\d,]*\\.?\\d+(?:e[-+]?\\d+)?|inf|nan)%?";
const QUOTED = "'(?:[^'\\\\]|\\\\.)*'|\"(?:[^\"\\\\]|\\\\.)*\"|\\w*[[({][^]*?[\\])}]|[^\\s,;:'\"]+";
// Characters of a text that is worth the search; parts of it, and those that one message may take; messages within messages.
const MOST = 2000, PARTS = 60, JOINED = 4, DEPTH = 4;
const BEFORE = /^\n?(?:warning: |Error: |警告：|错误：)?/;  // of a line that stands by itself
const plain = (text) => text.replaceAll("{{", "{").replaceAll("}}", "}");
const quoted = (text) => text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");

// [[literal, hole], …], the last without a hole.
function pieces(template) {
    const found = [];
    let before = "", at = 0;
    for (const match of template.matchAll(/\{\{|\}\}|\{([^{}]*)\}/g)) {
        before += template.slice(at, match.index);
        at = match.index + match[0].length;
        if (match[1] === undefined) before += match[0];
        else {
            found.push([plain(before), match[1]]);
            before = "";
        }
    }
    return [...found, [plain(before + template.slice(at)), null]];
}

function hole(kind) {
    if (kind.includes("|")) return `(${kind.split("|").map(quoted).join("|")})`;
    return kind === "!r" ? `(${QUOTED})` : kind.startsWith(":") ? `(${NUMBER})` : "([^]*?)";
}

class Template {
    constructor(english, translation) {
        const parts = pieces(english.replace(BEFORE, ""));
        this.holes = parts.map(([, kind]) => kind).slice(0, -1);
        this.literals = parts.map(([literal]) => literal).filter(Boolean);
        const words = this.holes.filter((kind) => kind.includes("|")).map((kind) => Math.max(...kind.split("|").map((one) => one.length)));
        this.weight = words.reduce((sum, length) => sum + length, this.literals.join("").length);
        this.parts = parts;
        this.translation = pieces(translation.replace(BEFORE, ""));
    }

    // The texts of its holes; null where it does not fit. Most texts are refused by the first literal that they lack.
    match(text) {
        let at = 0;
        for (const literal of this.literals) {
            at = text.indexOf(literal, at);
            if (at < 0) return null;
            at += literal.length;
        }
        this.pattern ??= new RegExp(`^${this.parts.map(([literal, kind]) => quoted(literal) + (kind === null ? "" : hole(kind))).join("")}$`);
        return this.pattern.exec(text)?.slice(1) ?? null;
    }
}

// (text) => the text in the page's language. table: {template: translation}; names: {node: {display_name, inputs: {input: {name}}}}.
export function translator(table, names = {}) {
    const templates = Object.entries(table).map(([english, translation]) => new Template(english, translation)).filter(({ weight }) => weight).sort((one, other) => other.weight - one.weight);
    const known = new Map();

    const label = (node, input) => {
        const shown = names[node];
        if (!shown) return input ? `${node}.${input}` : node;
        return input ? `“${shown.display_name}”的“${shown.inputs?.[input]?.name ?? input}”` : `“${shown.display_name}”`;
    };

    let depth = 0, seen = new Map();  // readings of the text in hand: its parts are asked for again and again

    function once(kind, text, read) {
        const key = kind + depth + text;
        if (!seen.has(key)) seen.set(key, read(text));
        return seen.get(key);
    }

    // {said, weight} of a template's translation with its holes filled.
    function filled(template, values) {
        const value = (name) => (/^\d+$/.test(name) ? values[name - 1] : name);
        let weight = template.weight;
        const said = template.translation.map(([literal, kind]) => {
            if (kind === null) return literal;
            const [, number, sign, words] = /^(\d+)(?:([tl])|:([^]*))?$/.exec(kind) ?? [];
            if (!number) return literal + label(...kind.split(".").map(value));
            const own = values[number - 1];
            if (words !== undefined) return literal + words.split("|")[template.holes[number - 1].split("|").indexOf(own)];
            if (!sign) return literal + own;
            const found = sign === "l" ? listed(own) : part(own);
            weight += found.weight;
            return literal + found.said;
        }).join("");
        return { said, weight };
    }

    // Every reading is {said, weight}: the weight is how many characters of ours were recognised, and the heaviest reading is the right one.
    const whole = (text) => once("whole", text, matched);

    function matched(text) {
        for (const template of templates) {
            const values = template.match(text);
            if (values) return filled(template, values);
        }
        return null;
    }

    const heavier = (...readings) => readings.reduce((best, one) => (one && (!best || one.weight > best.weight) ? one : best), null);

    // Messages that were joined: how they are parted so that most is recognised. What is in none of them stays as it is.
    function joined(text, between, joint, read, most = JOINED) {
        const parts = text.split(between);
        if (parts.length < 2 || parts.length > PARTS) return null;
        const best = [...parts.map(() => null), { said: [], weight: 0 }];
        for (let from = parts.length - 1; from >= 0; from -= 1) {
            const rest = best[from + 1];
            best[from] = { said: [parts[from], ...rest.said], weight: rest.weight - 0.5 };
            for (let to = Math.min(parts.length, from + most); to > from; to -= 1) {
                const one = read(parts.slice(from, to).join(between));
                const weight = one ? one.weight + best[to].weight : 0;
                if (one && weight > best[from].weight) best[from] = { said: [one.said, ...best[to].said], weight };
            }
        }
        return best[0].weight > 0 ? { said: best[0].said.join(joint), weight: best[0].weight } : null;
    }

    // "whom it is about: what is said of it"
    function headed(text, read = inner) {
        for (let at = text.indexOf(": "), tries = 0; at > 0 && tries < 3; at = text.indexOf(": ", at + 1), tries += 1) {
            const said = read(text.slice(at + 2));
            if (!said) continue;
            return { said: `${text.slice(0, at)}：${said.said}`, weight: said.weight };
        }
        return null;
    }

    // "3/20" behind what is being done, or what is more in brackets
    function followed(text) {
        const [, head, count, more] = /^([^]*?)(?: (\d+\/\d+)| \(([^]*)\))$/.exec(text) ?? [], known = head && whole(head);
        if (!known) return null;
        const inside = count ? { said: ` ${count}`, weight: 0 } : part(more);
        return { said: known.said + (count ? inside.said : `（${inside.said}）`), weight: known.weight + inside.weight };
    }

    // Several in a row, all of them ours.
    function listing(text) {
        const each = text.split(/, | and /).map(whole);
        return each.length > 1 && each.every(Boolean) ? { said: each.map(({ said }) => said).join("、"), weight: each.reduce((sum, { weight }) => sum + weight, 0) } : null;
    }

    // Two holes that touch: the second begins as a clause of ours does.
    function tailed(text, both = false) {
        for (const { index } of text.matchAll(/; |, | (?=\(|and |in )/g)) {
            const tail = index ? whole(text.slice(index)) : null, head = tail && part(text.slice(0, index));
            if (tail && (head.weight || !both)) return { said: head.said + tail.said, weight: head.weight + tail.weight };
        }
        return null;
    }

    function line(text) {
        const [, severity, rest] = /^(Error|error|warning|note): ([^]*)$/.exec(text) ?? [];
        if (severity) return { said: `${SEVERITIES[severity]}：${line(rest)?.said ?? rest}`, weight: severity.length };
        const one = (inside) => whole(inside) ?? (inside.endsWith(".") ? whole(inside.slice(0, -1)) : null);
        return heavier(one(text), joined(text, ". ", "。", one), headed(text), followed(text));
    }

    const inner = (text) => (depth < DEPTH ? once("inner", text, within) : null);

    function within(text) {
        depth += 1;
        const several = joined(text, "; ", "；", (one) => heavier(whole(one), headed(one, whole)), 2);
        const found = heavier(line(text), whole(text.trim()), several, listing(text), tailed(text));
        depth -= 1;
        return found;
    }

    // Names of files, which stay as they are, and how many more there are.
    function listed(text) {
        const [, names_, more] = /^([^]*?)( and \d+ more)?$/.exec(text);
        return { said: names_ + (more ? whole(more).said : ""), weight: 0 };
    }

    // What stands in a hole: a message, several of them, or the name of a node or an input.
    function part(text) {
        if (/^[A-Z]\w+(\.\w+)?$/.test(text) && names[text.split(".")[0]]) return { said: label(...text.split(".")), weight: text.length };
        return (text.trim() ? inner(text) : null) ?? { said: text, weight: 0 };
    }

    // A line under a finding: names, each with a detail in brackets.
    function named(text) {
        return listed(text).said.split(", ").map((one) => one.replace(/ \(([^()]+)\)$/, (all, detail) => `（${whole(detail)?.said ?? detail}）`)).join(", ");
    }

    // Lines are messages of their own, but for those of one that quotes several.
    function translate(text) {
        const said = (one) => one.length > MOST ? one : (line(one) ?? listing(one) ?? tailed(one, true))?.said ?? one;
        if (!text.includes("\n")) return said(text);
        const under = (one) => one.length > MOST ? one : whole(one)?.said ?? one.match(/^ +/)[0] + (line(one.trim())?.said ?? named(one.trim()));
        const lines = text.split("\n").map((one) => (one.startsWith(" ") ? under(one) : said(one))).join("\n");
        return lines === text ? said(text) : lines;
    }

    return (text) => {
        if (typeof text !== "string" || !text) return text;
        if (!known.has(text)) {
            if (known.size > 500) known.clear();
            known.set(text, translate(text));
            seen = new Map();
        }
        return known.get(text);
    };
}

const SEVERITIES = { Error: "错误", error: "错误", warning: "警告", note: "提示" };
