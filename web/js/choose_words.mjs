// What Choose Checkpoint's grid says, in the page's language.
import { chinese } from "./settings.mjs";

const WORDS = {
    en: {
        empty: "Press Run: the saved steps are drawn here, side by side. Click the best one.", choose: "Choose a checkpoint", drawing: "Drawing", finished: "Click the best one", interrupted: "Interrupted, what is drawn stays",
        failed: "Failed", step: "step", strength: "strength", prompt: "prompt", kinds: { final: "last", best: "best" }, bestTip: "Lowest validation loss", finalTip: "What the training ended with",
        at: (step, strength) => `step ${step} at strength ${strength}`, chosen: (what) => `Chosen: ${what}`, goesOn: "it goes on from here", pressRun: "press Run to go on with it", notDrawn: "not among the pictures",
        none: (what) => `Nothing chosen: ${what} goes on`, elsewhere: (choice) => `Chosen before, not in this grid: ${choice}`, kept: (name) => `The run's result is now ${name}`, clear: "Clear choice", cleared: "Nothing chosen: press Run to go on with the newest step at strength 1",
        other: (compare) => `The grid is of another drawing: press Run to compare ${compare}`, drawnAt: (strength) => `Drawn at strength ${strength}, the last of strengths`, first: (count) => `Drawn with the first of ${count} prompts; compare: prompts draws all`,
        clearTip: "Without a choice the newest step at strength 1 goes on", look: "Enlarge", lookTip: "Enlarge (Space)", chooseThis: "Choose this one", isChosen: "Chosen",
        keys: "Arrows move, Enter chooses, Esc closes", undrawn: "not drawn yet",
        notes: { damaged: (n) => `${n.file} cannot be read and is left out`, alone: () => "The run has saved one LoRA alone: set save_steps in LoRA Config to have steps to choose from",
            other_run: (n) => `The choice is of run ${n.chosen}, this is ${n.run}: click again`, gone: (n) => `${n.file} was chosen and is no longer there: click again` },
    },
    zh: {
        empty: "按“运行”：已保存的各步会并排画在这里，点选最好的一张。", choose: "选择检查点", drawing: "绘制中", finished: "点选最好的一张", interrupted: "已中断，画好的会保留",
        failed: "失败", step: "步数", strength: "强度", prompt: "提示词", kinds: { final: "最后", best: "最佳" }, bestTip: "验证损失最低", finalTip: "训练结束时的 LoRA",
        at: (step, strength) => `第 ${step} 步（强度 ${strength}）`, chosen: (what) => `已选：${what}`, goesOn: "正在使用", pressRun: "按“运行”用它继续", notDrawn: "不在这些图中",
        none: (what) => `尚未选择：将使用${what}`, elsewhere: (choice) => `之前选的不在此图中：${choice}`, kept: (name) => `本次训练的结果现在是 ${name}`, clear: "清除选择", cleared: "尚未选择：按“运行”将使用最新一步、强度 1",
        other: (compare) => `此图是之前画的：按“运行”改为比较${compare === "prompts" ? "提示词" : "强度"}`, drawnAt: (strength) => `以强度 ${strength} 绘制（“强度”中的最后一个）`, first: (count) => `只用 ${count} 条提示词中的第一条；把“比较”设为 prompts 可画出全部`,
        clearTip: "不选择时，以最新一步、强度 1 继续", look: "放大", lookTip: "放大（空格键）", chooseThis: "选择这一张", isChosen: "已选择",
        keys: "方向键移动，回车选择，Esc 关闭", undrawn: "尚未画出",
        notes: { damaged: (n) => `${n.file} 无法读取，已跳过`, alone: () => "本次训练只保存了一个 LoRA：在“LoRA 设置”中设置“每隔几步保存”，才有多个步可选",
            other_run: (n) => `所选属于训练 ${n.chosen}，这里是 ${n.run}：请重新点选`, gone: (n) => `之前选的 ${n.file} 已不存在：请重新点选` },
    },
};

export const words = () => WORDS[chinese() ? "zh" : "en"];
