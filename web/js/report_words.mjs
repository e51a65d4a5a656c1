// What a report says in the page's language: titles by a finding's id; in English its sentence is the server's own.
import { chinese } from "./settings.mjs";
import { translated } from "./translated.mjs";

const plural = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;

const WORDS = {
    en: {
        pictures: (n) => plural(n, "picture"), error: (n) => plural(n, "error"), warning: (n) => plural(n, "warning"), note: (n) => plural(n, "note"),
        none: "Choose a folder of pictures, or upload some. What is to be said of them stands here.", checking: "Looking at the pictures…",
        unchecked: "The pictures are not checked: check_pictures is off.", many: (n) => `${n.toLocaleString("en")} pictures are checked when they are trained on.`, check: "Check them now",
        computed: (names) => `${names.join(", ")} ${names.length > 1 ? "come" : "comes"} from another node: what is to be said of the pictures is known when it runs.`,
        good: "nothing to complain of", more: (n) => `and ${n} more`, bucket: (n, cut, most) => `${plural(n, "picture")}, ${cut} cropped away on average, ${most} at most`,
    },
    zh: {
        pictures: (n) => `${n} 张图片`, error: (n) => `${n} 个错误`, warning: (n) => `${n} 个警告`, note: (n) => `${n} 条提示`,
        none: "请选择图片文件夹，或上传图片；检查结果显示在这里。", checking: "正在检查图片…",
        unchecked: "未检查图片：“检查图片”已关闭。", many: (n) => `共 ${n} 张图片，训练时才会检查。`, check: "现在检查",
        computed: (names) => `${names.join("、")}由其他节点给出，运行后才能检查图片。`,
        good: "没有发现问题", more: (n) => `另有 ${n} 张`, bucket: (n, cut, most) => `${n} 张图片，平均裁掉 ${cut}，最多 ${most}`,
    },
};

// id: [title, 标题]
const FOUND = {
    broken: ["Cannot be used", "无法使用"],
    too_small: ["Left out as too small", "太小，未参与训练"],
    filtered: ["Left out by a filter", "被筛选剔除"],
    reading: ["Reading the folder", "读取文件夹"],
    copies: ["Same file twice", "重复文件"],
    alike: ["Almost the same", "几乎相同"],
    mirrored: ["Mirror images", "镜像图片"],
    blurred: ["Blurred", "模糊"],
    dark: ["Nearly black", "过暗"],
    bright: ["Nearly white", "过亮"],
    flat: ["Without contrast", "对比度过低"],
    clipped: ["Mostly pure black or white", "大片纯黑或纯白"],
    enlarged: ["Enlarged", "被放大"],
    smaller: ["Trained smaller", "以较小尺寸训练"],
    cropped: ["Cropped a lot", "裁切过多"],
    short_batches: ["Batches not full", "批次不满"],
    no_caption: ["No caption", "没有标注"],
    same_caption: ["Same caption", "标注相同"],
    no_trigger: ["No trigger word", "没有触发词"],
    without_trigger: ["Trigger word put in front", "触发词加在最前"],
    common_trigger: ["Trigger word is common", "触发词太常见"],
    long_captions: ["Long captions", "标注过长"],
    few_pictures: ["Few pictures", "图片太少"],
    many_pictures: ["Many pictures", "图片很多"],
};

export const words = () => WORDS[chinese() ? "zh" : "en"];

export const found = (id) => FOUND[id]?.[chinese() ? 1 : 0] ?? id;

export const said = (finding) => translated(finding.text);
