// What the live panel says, in the page's language.
import { chinese } from "./settings.mjs";
import { size } from "./units.mjs";

const WORDS = {
    en: {
        idle: "Press Run to train", refused: "Not started", wrong: "Not ready: see below", above: (run) => `Above: the last run, ${run}`, preparing: "Preparing", encode: "Encoding pictures and captions", train: "Training",
        finished: "Finished", stopped: "Stopped, kept", interrupted: "Interrupted", failed: "Failed", lost: "Broken off", running: "Training",
        step: (n, of) => `step ${n} / ${of}`, epoch: (n) => `epoch ${n}`, left: (t) => `${t} left`,
        took: (t) => `took ${t}`, stop: "Stop and keep", save: "Save now", sample: "Sample now", asked: "…",
        stopTip: "Ends after the step in hand; what was learned is saved", saveTip: "Keeps the LoRA as it is now among the run's checkpoints", sampleTip: "Draws the sample prompts with the LoRA as it is now",
        loss: "loss", smoothed_loss: "smoothed", learning_rate: "rate", validation: "validation", noCurve: "The loss is drawn here", noSamples: "Samples appear here: set sample_steps, or press Sample now",
        sampleAt: (n) => `step ${n}`, slider: "Samples through time", needs: (m) => `Memory: about ${size(m.base + m.lora + m.optimizer + m.step)}: base model ${size(m.base)}, LoRA ${size(m.lora)}, optimizer ${size(m.optimizer)}, a step ${size(m.step)}`
            + (m.free === null ? "" : `; free for the last two ${size(m.free)}`), willTake: (t) => `The run takes about ${t}`, apply: (pairs) => `Set ${pairs.map(([name, value]) => `${name} ${value}`).join(", ")}`, applyAll: (n) => `Set back ${n} settings`, nothing: "empty", on: "on", off: "off", applied: "Set. Press Run.", notThere: (names) => `no widget here is called ${names}`,
        resume: "Resume", resumeTip: "Sets resume to this run; press Run to go on", resumed: "resume is set: press Run to go on",
        messages: { step_skipped: (m) => `step ${m.step} was skipped: loss ${m.loss}`, out_of_memory: (m) => `out of memory at step ${m.step}: ${m.change}`, will_not_fit: (m) => `it would not fit: ${m.change}`, compiling: (m) => `step ${m.step}: ${m.change}`,
            sample_failed: (m) => `no sample at step ${m.step}: ${m.reason}`, checkpoint_failed: (m) => `step ${m.step} could not be saved: ${m.reason}`, state_failed: (m) => `what Resume needs could not be saved at step ${m.step}: ${m.reason}`, checkpoint: (m) => `saved at step ${m.step} (${({ step: "as save_steps has it", saved: "asked for", best: "best so far", latest: "against a crash" })[m.kind] ?? m.kind})` },
        process: "What ComfyUI holds in all; the estimate counts what the training takes",
    },
    zh: {
        idle: "按“运行”开始训练", refused: "未能开始", wrong: "还不能训练：原因见下方", above: (run) => `以上是上一次训练：${run}`, preparing: "准备中", encode: "正在编码图片和标注", train: "训练中",
        finished: "已完成", stopped: "已停止并保存", interrupted: "已中断", failed: "失败", lost: "意外中止", running: "训练中",
        step: (n, of) => `第 ${n} / ${of} 步`, epoch: (n) => `第 ${n} 轮`, left: (t) => `剩余 ${t}`,
        took: (t) => `用时 ${t}`, stop: "停止并保存", save: "立即保存", sample: "立即出图", asked: "…",
        stopTip: "做完当前这一步后结束，学到的内容会保存", saveTip: "把现在的 LoRA 存入本次训练的检查点", sampleTip: "用现在的 LoRA 按样图提示词出图",
        loss: "损失", smoothed_loss: "平滑", learning_rate: "学习率", validation: "验证", noCurve: "损失曲线会画在这里", noSamples: "样图会出现在这里：设置“每隔几步画样图”，或按“立即出图”",
        sampleAt: (n) => `第 ${n} 步`, slider: "按步数查看样图", needs: (m) => `占用：约 ${size(m.base + m.lora + m.optimizer + m.step)}：基础模型 ${size(m.base)}，LoRA ${size(m.lora)}，优化器 ${size(m.optimizer)}，每步 ${size(m.step)}`
            + (m.free === null ? "" : `；后两项可用 ${size(m.free)}`), willTake: (t) => `整个训练约需 ${t}`, apply: (pairs) => `把${pairs.map(([name, value]) => `“${name}”设为 ${value}`).join("，")}`, applyAll: (n) => `恢复 ${n} 项设置`, nothing: "（空）", on: "开", off: "关", applied: "已设置，请按“运行”。", notThere: (names) => `这里没有名为 ${names} 的设置`,
        resume: "继续", resumeTip: "把“继续训练”设为本次训练，再按“运行”即可继续", resumed: "已设置“继续训练”：按“运行”继续",
        messages: { step_skipped: (m) => `第 ${m.step} 步已跳过：损失 ${m.loss}`, out_of_memory: (m) => `第 ${m.step} 步显存不足：${m.change}`, will_not_fit: (m) => `显存放不下：${m.change}`, compiling: (m) => `第 ${m.step} 步：${m.change}`,
            sample_failed: (m) => `第 ${m.step} 步未能出图：${m.reason}`, checkpoint_failed: (m) => `第 ${m.step} 步未能保存：${m.reason}`, state_failed: (m) => `第 ${m.step} 步未能保存继续训练所需的状态：${m.reason}`, checkpoint: (m) => `已在第 ${m.step} 步保存（${({ step: "按设定步数", saved: "手动", best: "目前最佳", latest: "防崩溃" })[m.kind] ?? m.kind}）` },
        device: { RAM: "内存", GPU: "显存" },
        process: "ComfyUI 整个进程占用的内存；预估只计算训练所需的部分",
    },
};

export const words = () => WORDS[chinese() ? "zh" : "en"];
