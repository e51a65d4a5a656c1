// What the estimate says, in the page's language.
import { chinese } from "./settings.mjs";
import { count, size } from "./units.mjs";


const WORDS = {
    en: {
        noTrainer: "Connect config to a Train LoRA: it says what the training will take.", noModel: "Connect a loaded base model to Train LoRA: it says what the training will take.",
        asking: "Looking at the model…", parameters: (n) => `${count(n)} parameters`, brief: (n) => `${count(n)} values`, file: (n) => `file ${size(n)}`, unknown: "unknown", memory: "memory",
        layers: (n) => `${n} layers are trained`, base: ["base model", "base"], lora: ["LoRA and optimizer", "LoRA"], step: ["a step", "step"], needs: (n, of, device) => `${device} ${size(n)}${of ? ` / ${size(of)}` : ""}`,
        tip: (m) => `About ${size(m.needed)}: base model ${size(m.base)}, LoRA and optimizer ${size(m.lora + m.optimizer)}, a step ${size(m.step)}.`
            + (m.free === null ? "" : ` Free for it: ${size(m.free)} of ${size(m.total)}.`),
        tooMuch: (m) => `About ${size(m.needed)} are needed, ${size(m.free)} are free`,
        checkpointing: (m) => `So that it fits, gradient checkpointing will be turned on: about ${size(m.checkpointed)} then.`,
        tight: (m) => `It may not fit: about ${size(m.needed)} are needed, ${size(m.free)} are free. Lower the resolution, the batch size or the rank.`,
        takes: (m) => `About ${size(m.needed)} of ${m.device === "GPU" ? "GPU memory" : "memory"}${m.total ? ` (${size(m.total)})` : ""}`,
        steps: (n, epochs, pictures) => `${n} steps${epochs ? `, ${epochs} epochs of ${pictures} pictures` : ""}`, filtered: "before Filter Dataset leaves some out",
        computed: (names) => `${names.join(", ")} ${names.length > 1 ? "come from other nodes" : "comes from another node"} and may differ: reckoned as set here`,
    },
    zh: {
        noTrainer: "把“设置”连到“训练 LoRA”，这里会显示训练需要多少资源。", noModel: "请把加载好的基础模型连到“训练 LoRA”，这里会显示训练需要多少资源。",
        asking: "正在查看模型…", parameters: (n) => `${count(n)} 个可训练参数`, brief: (n) => `${count(n)} 参数`, file: (n) => `文件 ${size(n)}`, unknown: "未知", memory: "内存",
        layers: (n) => `训练 ${n} 层`, base: ["基础模型", "基础"], lora: ["LoRA 与优化器", "LoRA"], step: ["每步", "每步"], needs: (n, of, device) => `${device === "GPU" ? "显存" : "内存"} ${size(n)}${of ? ` / ${size(of)}` : ""}`,
        tip: (m) => `约 ${size(m.needed)}：基础模型 ${size(m.base)}，LoRA 与优化器 ${size(m.lora + m.optimizer)}，每步 ${size(m.step)}。`
            + (m.free === null ? "" : `可用 ${size(m.free)}，共 ${size(m.total)}。`),
        tooMuch: (m) => `约需 ${size(m.needed)}，可用 ${size(m.free)}`,
        checkpointing: (m) => `放不下，会自动打开梯度检查点，约需 ${size(m.checkpointed)}。`,
        tight: (m) => `可能放不下：约需 ${size(m.needed)}，可用 ${size(m.free)}。请降低分辨率、批量大小或 rank。`,
        takes: (m) => `约需${m.device === "GPU" ? "显存" : "内存"} ${size(m.needed)}${m.total ? `（共 ${size(m.total)}）` : ""}`,
        steps: (n, epochs, pictures) => `共 ${n} 步${epochs ? `，${pictures} 张图片 ${epochs} 轮` : ""}`, filtered: "“筛选数据集”筛选之前",
        computed: (names) => `${names.join("、")}由其他节点给出，可能不同：此处按节点上的值估算`,
    },
};

export const words = () => WORDS[chinese() ? "zh" : "en"];
