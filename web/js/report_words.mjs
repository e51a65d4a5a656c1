// What a report says in the page's language: titles by a finding's id; in English its sentence is the server's own.
import { chinese } from "./settings.mjs";

const plural = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;

const WORDS = {
    en: {
        pictures: (n) => plural(n, "picture"), error: (n) => plural(n, "error"), warning: (n) => plural(n, "warning"), note: (n) => plural(n, "note"),
        good: "nothing to complain of", more: (n) => `and ${n} more`, bucket: (n, cut, most) => `${plural(n, "picture")}, ${cut} cropped away on average, ${most} at most`,
    },
    zh: {
        pictures: (n) => `${n} 张图片`, error: (n) => `${n} 个错误`, warning: (n) => `${n} 个警告`, note: (n) => `${n} 条提示`,
        good: "没有发现问题", more: (n) => `另有 ${n} 张`, bucket: (n, cut, most) => `${n} 张图片，平均裁掉 ${cut}，最多 ${most}`,
    },
};

// id: [title, 标题, 说明]
const FOUND = {
    broken: ["Cannot be used", "无法使用", (v) => `${v.n} 个文件无法使用：请换成完好的文件，或从文件夹中移走`],
    too_small: ["Left out as too small", "太小，已略去", (v) => `${v.n} 张图片短边小于 min_size ${v.min_size}，未参与训练：请换更大的图片，或调低 min_size`],
    filtered: ["Left out by a filter", "被筛选略去", (v) => `${v.n} 张图片被筛选节点略去，文件没有删除`],
    reading: ["Reading the folder", "读取文件夹", () => ""],
    copies: ["Same file twice", "重复文件", (v) => `${v.n} 张图片与另一张是同一个文件：等于算两次，容易被死记；请移走副本，改用 repeats`],
    alike: ["Almost the same", "几乎相同", (v) => `${v.n} 张图片与另一张几乎相同（缩放、重新保存或略有改动）：等于算两次；每组请只留最好的一张`],
    mirrored: ["Mirror images", "镜像图片", (v) => `${v.n} 张图片是另一张的镜像：${v.flip ? "flip 会再镜像一次，请移走它们，或关闭 flip" : "用 flip 即可，不必另存文件"}`],
    blurred: ["Blurred", "模糊", (v) => `${v.n} 张图片连最清晰的部分也是模糊的（0 到 1 中达到 0.5 以上）：LoRA 会学到模糊；请换成清晰的图片`],
    dark: ["Nearly black", "过暗", (v) => `${v.n} 张图片几乎全黑，学不到多少东西：请调亮或更换`],
    bright: ["Nearly white", "过亮", (v) => `${v.n} 张图片几乎全白，学不到多少东西：请调暗或更换`],
    flat: ["Without contrast", "缺少对比", (v) => `${v.n} 张图片几乎没有对比，LoRA 会学到灰蒙蒙的画面：请提高对比度或更换`],
    clipped: ["Mostly pure black or white", "大片纯黑或纯白", (v) => `${v.n} 张图片大部分是纯黑或纯白：作为纯色背景没有问题，否则是曝光不当`],
    enlarged: ["Enlarged", "被放大", (v) => `${v.n} 张图片会被放大，LoRA 会学到模糊：${v.resolution}×${v.resolution} 超出了它们的像素；请换更大的图片，或提高 min_size 把它们略去`],
    smaller: ["Trained smaller", "以较小尺寸训练", (v) => `${v.n} 张图片以小于 ${v.resolution}×${v.resolution} 的尺寸训练，因为不会放大：想要更细的细节，请换更大的图片，或降低整体分辨率`],
    cropped: ["Cropped a lot", "裁切过多", (v) => `${v.n} 张图片居中裁切后损失超过 20%${v.buckets ? "（分桶范围是 1:2 到 2:1）：请手动裁出重要部分" : "：请打开分桶，或手动裁切"}`],
    short_batches: ["Batches not full", "批次不满", (v) => `${v.of} 个桶中有 ${v.n} 个的图片少于批大小 ${v.batch_size}，其中 ${v.pictures} 张会以较小的批次训练：请增加 repeats，减小批大小，或裁成与其他图片相同的形状`],
    no_caption: ["No caption", "没有标注", (v) => `${v.of} 张图片中有 ${v.n} 张没有标注，${v.trigger ? `只用触发词“${v.trigger}”训练：请描述应当可以变化的内容` : "以空标注训练：请填写标注，或设置触发词"}`],
    same_caption: ["Same caption", "标注相同", (v) => `${v.n} 张图片与其他图片的标注相同：它们之间的差别无法用文字区分；请分别描述每张图片`],
    no_trigger: ["No trigger word", "没有触发词", () => "没有触发词：只能靠标注中的词来调用 LoRA；若有独立的主体，请设置一个少见的词，例如 zxmug"],
    without_trigger: ["Trigger word put in front", "触发词加在最前", (v) => `${v.n} 张图片的标注中没有触发词“${v.trigger}”，会加在最前面；写在句中合适的位置效果更好`],
    common_trigger: ["Trigger word is common", "触发词太常见", (v) => `触发词“${v.trigger}”是模型已经认识的词：原有的含义会混进来，其他提示词也会受影响；请用少见的词，例如 zxmug`],
    long_captions: ["Long captions", "标注过长", (v) => `${v.n} 张图片的标注超过 ${v.encoder} 一次读取的 ${v.limit} 个 token，最多 ${v.most} 个：${v.windows
        ? `会像 ComfyUI 那样分成最多 ${v.parts} 段读取，各段互不相见（其他程序会截断）；请把重要内容放在前面，或缩短` : "不会截断，但模型训练时很少见到这么长的文字；请缩短"}`],
    few_pictures: ["Few pictures", "图片太少", (v) => `${v.n} 张图片偏少：${v.known ? "该预设适合" : "多数题材需要"} ${v.low} 到 ${v.high} 张；太少容易被死记，请增加图片，或减少步数`],
    many_pictures: ["Many pictures", "图片很多", (v) => `${v.n} 张图片较多：该预设适合 ${v.low} 到 ${v.high} 张；请增加步数，让每张图片有足够的次数`],
};

export const words = () => WORDS[chinese() ? "zh" : "en"];

export const found = (id) => FOUND[id]?.[chinese() ? 1 : 0] ?? id;

export const said = (finding) => FOUND[finding.id]?.[2](finding.values);
