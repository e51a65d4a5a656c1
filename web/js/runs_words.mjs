// What the list of runs and their comparison say, in the page's language.
import { chinese } from "./settings.mjs";

const n = (count, one, many) => `${count} ${count === 1 ? one : many}`;

const WORDS = {
    en: {
        tab: "LoRA runs", search: "Search runs", refresh: "Read the runs' folder again", sort: "Order", byTime: "Newest", byName: "Name", bySize: "Size",
        none: "No runs yet. Train LoRA leaves one for each training.", noMatch: "No run matches the search.", noCurve: "no curve", failedToRead: (why) => `The runs could not be read: ${why}`,
        select: (name) => `Select ${name} for comparison`, compare: (count) => `Compare (${count})`, compareTip: "Select two or more runs to see them side by side", clear: "Clear the selection",
        open: (name) => `${name}: curve, samples and settings`, newest: (step) => `last ${step}`, best: (step) => `best ${step}`, loss: (value) => `loss ${value}`,
        steps: (step, of) => (of && step !== of ? `step ${step} / ${of}` : n(step, "step", "steps")), left: (time) => `${time} left`,
        use: "Use in graph", useTip: "Adds a Load LoRA with this run's file, or sets the selected Load LoRA to it", noFile: "This run has left no file in the loras folders",
        resume: "Resume", resumeTip: "Sets resume of the graph's Train LoRA to this run", notResumable: "This run cannot go on: it is over, or nothing was saved on its way",
        repeat: "Repeat with changes", repeatTip: "Fills Load Dataset, LoRA Config and Train LoRA of the graph with this run's settings", rename: "Rename…", renameTo: "The run's new name; the LoRA file keeps its own",
        trash: "Move to the trash", training: "not while it trains", elsewhere: "Training elsewhere",
        usedIn: (lora, count) => `${lora} is set in ${n(count, "loader", "loaders")}.`, added: (lora) => `A Load LoRA with ${lora} is in the middle of the view: connect its model and clip.`,
        resumed: (name) => `Train LoRA goes on with ${name}: press Run.`, repeated: (name) => `The settings of ${name} are filled in. Change what you like, then press Run.`,
        missing: (kind) => `There is no ${kind} in this graph: add one, or open an example workflow.`, several: (kind) => `There are several nodes of ${kind} in this graph: select the one that is meant.`,
        used: (count, size) => `${n(count, "run", "runs")} · ${size}`, found: (count, all, size) => `${count} of ${n(all, "run", "runs")} · ${size}`, loras: (size) => `${size} of LoRA files`, trashed: (name, lora) => `“${name}” is in the trash.${lora ? ` Its LoRA ${lora} stays in the loras folder.` : ""}`, undo: "Undo", close: "Close",
        trashHolds: (count, size) => `Trash: ${count} · ${size}`, trashTitle: "Runs in the trash", restore: "Restore", restored: (name) => `“${name}” is back.`,
        empty: "Empty the trash", sureEmpty: (count, size) => `Delete ${n(count, "run", "runs")} (${size}) for good? LoRA files in the loras folders stay.`, emptied: "The trash is empty.", trashEmpty: "The trash is empty.",
        title: (names) => (names.length === 1 ? names[0] : `${names.length} runs side by side`), reading: "Reading the runs…", curve: "Curve", samples: "Samples", settings: "Settings", facts: "Run", remove: (name) => `Leave out ${name}`,
        columns: { smoothed_loss: "smoothed loss", loss: "loss", validation: "validation loss", learning_rate: "learning rate", grad_norm: "gradient norm" }, noValues: "None of these runs has such a curve.", zoomHint: "Drag to zoom, double-click for all",
        upTo: (step) => `up to step ${step}`, slider: "At a step", allSteps: "All steps", atStep: (step) => `step ${step}`, picture: (number) => `Picture ${number}`, noSamples: "No samples were drawn: set sample_steps in Train LoRA.", bestMark: "best",
        all: "All settings", same: "All settings are the same.", differ: (count, all) => `${count} of ${all} settings differ`, foreign: "The settings are of another version of LoRA Loom, and are shown as they are:", yes: "on", no: "off", nothing: "none",
        fact: { status: "status", started: "started", seconds: "took", step: "steps", loss: "loss", best: "best validation", model: "model", family: "family", pictures: "pictures", lora: "LoRA file", bytes: "on disk" },
    },
    zh: {
        tab: "LoRA 训练", search: "搜索训练", refresh: "重新读取训练文件夹", sort: "排序", byTime: "最新", byName: "名称", bySize: "大小",
        none: "还没有训练。“训练 LoRA”节点每次训练都会在这里留下一项。", noMatch: "没有符合条件的训练。", noCurve: "没有曲线", failedToRead: (why) => `无法读取训练：${why}`,
        select: (name) => `选择 ${name} 进行对比`, compare: (count) => `对比（${count}）`, compareTip: "选择两项或更多训练并排对比", clear: "取消选择",
        open: (name) => `${name}：曲线、样图和设置`, newest: (step) => `最新 ${step}`, best: (step) => `最佳 ${step}`, loss: (value) => `损失 ${value}`,
        steps: (step, of) => (of && step !== of ? `第 ${step} / ${of} 步` : `${step} 步`), left: (time) => `剩余 ${time}`,
        use: "用于当前工作流", useTip: "添加一个加载此 LoRA 的节点，或替换所选 LoRA 加载器的文件", noFile: "loras 文件夹中没有这次训练的文件",
        resume: "继续训练", resumeTip: "把工作流中“训练 LoRA”的“继续训练”设为这次训练", notResumable: "这次训练无法继续：已经完成，或途中没有保存",
        repeat: "修改后重新训练", repeatTip: "用这次训练的设置填写工作流中的“加载数据集”“LoRA 设置”和“训练 LoRA”", rename: "重命名…", renameTo: "训练的新名称；LoRA 文件名不变",
        trash: "移到回收站", training: "训练进行中，无法操作", elsewhere: "在别处训练",
        usedIn: (lora, count) => `已在 ${count} 个加载器中选用 ${lora}。`, added: (lora) => `已在视图中央添加加载 ${lora} 的节点：请连接模型和 CLIP。`,
        resumed: (name) => `“训练 LoRA”将继续 ${name}：请按“运行”。`, repeated: (name) => `已填入 ${name} 的设置。修改后按“运行”即可。`,
        missing: (kind) => `当前工作流中没有“${kind}”节点：请添加一个，或打开示例工作流。`, several: (kind) => `当前工作流中有多个“${kind}”节点：请选中要用的那个。`,
        used: (count, size) => `${count} 项训练 · ${size}`, found: (count, all, size) => `${count} / ${all} 项训练 · ${size}`, loras: (size) => `LoRA 文件 ${size}`, trashed: (name, lora) => `“${name}”已移到回收站。${lora ? `LoRA 文件 ${lora} 仍在 loras 文件夹中。` : ""}`, undo: "撤销", close: "关闭",
        trashHolds: (count, size) => `回收站：${count} · ${size}`, trashTitle: "回收站中的训练", restore: "恢复", restored: (name) => `“${name}”已恢复。`,
        empty: "清空回收站", sureEmpty: (count, size) => `永久删除 ${count} 项训练（${size}）吗？loras 文件夹中的 LoRA 文件会保留。`, emptied: "回收站已清空。", trashEmpty: "回收站是空的。",
        title: (names) => (names.length === 1 ? names[0] : `${names.length} 项训练对比`), reading: "正在读取训练…", curve: "曲线", samples: "样图", settings: "设置", facts: "训练", remove: (name) => `移除 ${name}`,
        columns: { smoothed_loss: "平滑损失", loss: "损失", validation: "验证损失", learning_rate: "学习率", grad_norm: "梯度范数" }, noValues: "这些训练都没有这条曲线。", zoomHint: "拖动放大，双击还原",
        upTo: (step) => `截至第 ${step} 步`, slider: "按步查看", allSteps: "所有步", atStep: (step) => `第 ${step} 步`, picture: (number) => `样图 ${number}`, noSamples: "没有样图：请在“训练 LoRA”中设置“每隔几步画样图”。", bestMark: "最佳",
        all: "所有设置", same: "所有设置都相同。", differ: (count, all) => `${all} 项设置中有 ${count} 项不同`, foreign: "设置来自 LoRA Loom 的其他版本，原样显示：", yes: "开", no: "关", nothing: "无",
        parts: { dataset: "数据集", adapter: "LoRA", optim: "优化", loss: "损失", train: "训练", data: "数据处理", output: "输出", samples: "样图" },
        names: { pictures: "适合的图片数", augment: "数据增强" },
        fact: { status: "状态", started: "开始", seconds: "用时", step: "步数", loss: "损失", best: "最佳验证", model: "模型", family: "模型家族", pictures: "图片", lora: "LoRA 文件", bytes: "占用空间" },
    },
};

export const words = () => WORDS[chinese() ? "zh" : "en"];
