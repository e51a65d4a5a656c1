// What the upload and the caption editor say, in the page's language.
import { chinese } from "./settings.mjs";

const WORDS = {
    en: {
        upload: "Upload pictures…", drop: "or drop pictures, a folder or a zip here", dropNow: "Drop to upload", edit: "Edit captions…", cancel: "Cancel", close: "Close",
        newFolder: "New folder in ComfyUI's input folder", folderName: "Name", mended: "Not every system allows that name; this one is allowed everywhere.", files: (n, size) => `${n} ${n === 1 ? "file" : "files"}, ${size}`, start: "Upload",
        sending: (percent) => `Uploading ${percent} %`, checking: "Checking the pictures…", cancelled: "Upload cancelled: nothing was kept.",
        done: (n, folder) => `${n} ${n === 1 ? "file is" : "files are"} in input/${folder}`, refused: (n) => `${n} left out`, refusedTitle: "What was left out, and why", notesTitle: "Uploaded, with a note",
        nothing: "Nothing was uploaded", lost: "The connection was lost: nothing was kept.", chooseFolder: "Choose a folder first.",
        noDataset: "Connect a Load Dataset to see its captions here.", openAll: (n) => `Edit ${n} ${n === 1 ? "caption" : "captions"}…`, noCaption: "no caption", unreadable: (n) => `${n} unreadable`, captioned: (n, of, all) => (of < all ? `${n} of the first ${of} with a caption` : of && n === of ? "all with a caption" : `${n} with a caption`),
        title: (folder) => `Captions · ${folder}`, loading: "Reading the folder…", counts: (shown, all, selected) => `${shown === all ? all : `${shown} of ${all}`} pictures · ${selected} selected`,
        undo: "Undo", redo: "Redo", save: "Save", saveN: (n) => `Save ${n}`, saveAs: "Save into", search: "Filter captions and names", toggle: "Replace and tags", all: "All", missing: "No caption", edited: "Edited",
        replace: "Search and replace", find: "Search for", by: "Replace by", byRegex: "Replace by; $1 is the first group, $& all that was found", regex: "Regular expression", matchCase: "Match case", scope: "In",
        inSelected: "selection", inShown: "shown", inAll: "all", preview: (places, n) => (places ? `${places} ${places === 1 ? "place" : "places"} in ${n} ${n === 1 ? "caption" : "captions"}` : "Nothing found"),
        replaceNow: "Replace", tag: "Tag", tagging: (n) => `Tag the selection (${n})`, addFront: "Add in front", addEnd: "Add at the end", remove: "Remove",
        tags: "Tags", tagFilter: "Filter tags", more: (n) => `and ${n} more`, clear: (tag) => `Only “${tag}”: show all again`, noTags: "No tags yet: they are what commas divide.",
        changed: (n) => `${n} ${n === 1 ? "caption" : "captions"} changed`, nothingToUndo: "Nothing to undo", nothingToSave: "Nothing to save",
        made: (n) => `Made by Auto Caption and not saved yet: ${n === 1 ? "one caption" : `${n} captions`}. Look through, then save.`,
        willReplace: "Auto Caption's “existing” is set to replace: its next run writes over these captions. Set it to keep.",
        conflict: (theirs, both) => `The folder has changed on disk since it was opened; nothing was saved. Taken over from there: ${theirs}${both ? `; edited in both places: ${both}` : ""}. Save again to write yours.`,
        onDisk: (name, caption) => `${name} on disk: ${caption || "no caption"}`, goneWith: (name, caption) => `${name} is no longer in the folder; you had written: ${caption}`, takeTheirs: (n) => `Take the ${n} from disk`, unsaved: (n) => (n === 1 ? "One edited caption is not saved." : `${n} edited captions are not saved.`), discard: "Discard", stay: "Keep editing",
        keys: "Arrows move · Space selects · Enter edits · Tab next · L looks from near · Ctrl+A all · Ctrl+Z undo · Ctrl+S save", look: "Look from near (L)", none: "No picture fits the filter.", broken: "cannot be read",
    },
    zh: {
        upload: "上传图片…", drop: "或将图片、文件夹、zip 拖到这里", dropNow: "松开即上传", edit: "编辑标注…", cancel: "取消", close: "关闭",
        newFolder: "ComfyUI input 目录中的新文件夹", folderName: "名称", mended: "有的系统不允许该名称，已改为可用的名称。", files: (n, size) => `${n} 个文件，${size}`, start: "上传",
        sending: (percent) => `正在上传 ${percent}%`, checking: "正在检查图片…", cancelled: "已取消上传，未保留任何文件。",
        done: (n, folder) => `${n} 个文件已存入 input/${folder}`, refused: (n) => `${n} 个未导入`, refusedTitle: "未导入的文件及原因", notesTitle: "已上传，请留意",
        nothing: "没有上传任何文件", lost: "连接中断，未保留任何文件。", chooseFolder: "请先选择文件夹。",
        noDataset: "连接“加载数据集”后，这里会显示它的标注。", openAll: (n) => `编辑 ${n} 条标注…`, noCaption: "无标注", unreadable: (n) => `${n} 个无法读取`, captioned: (n, of, all) => (of < all ? `前 ${of} 张中 ${n} 张有标注` : of && n === of ? "全部有标注" : `${n} 张有标注`),
        title: (folder) => `标注 · ${folder}`, loading: "正在读取文件夹…", counts: (shown, all, selected) => `${shown === all ? all : `${shown} / ${all}`} 张图片 · 已选 ${selected}`,
        undo: "撤销", redo: "重做", save: "保存", saveN: (n) => `保存 ${n} 条`, saveAs: "保存到", search: "筛选标注和文件名", toggle: "替换与标签", all: "全部", missing: "无标注", edited: "已修改",
        replace: "查找和替换", find: "查找", by: "替换为", byRegex: "替换为；$1 是第一个分组，$& 是找到的全部内容", regex: "正则表达式", matchCase: "区分大小写", scope: "范围",
        inSelected: "所选", inShown: "当前显示", inAll: "全部", preview: (places, n) => (places ? `${n} 条标注中有 ${places} 处` : "没有找到"),
        replaceNow: "替换", tag: "标签", tagging: (n) => `给所选图片加减标签（${n}）`, addFront: "加在最前", addEnd: "加在最后", remove: "移除",
        tags: "标签", tagFilter: "筛选标签", more: (n) => `还有 ${n} 个`, clear: (tag) => `只看“${tag}”：恢复全部`, noTags: "还没有标签（以逗号分隔）。",
        changed: (n) => `已修改 ${n} 条标注`, nothingToUndo: "没有可撤销的操作", nothingToSave: "没有需要保存的修改",
        made: (n) => `“自动打标”生成的 ${n} 条标注尚未保存：请检查后保存。`,
        willReplace: "“自动打标”的“已有标注”设为 replace：下次运行会覆盖这些标注，请改为 keep。",
        conflict: (theirs, both) => `打开之后磁盘上的文件夹有改动，尚未保存。已采用磁盘上的 ${theirs} 处改动${both ? `；有 ${both} 条两边都改过` : ""}。再次保存即写入你的修改。`,
        onDisk: (name, caption) => `${name} 磁盘上为：${caption || "（无标注）"}`, goneWith: (name, caption) => `${name} 已不在文件夹中，你写的是：${caption}`, takeTheirs: (n) => `改用磁盘上的 ${n} 条`, unsaved: (n) => `有 ${n} 条修改尚未保存。`, discard: "放弃", stay: "继续编辑",
        keys: "方向键移动 · 空格选择 · 回车编辑 · 编辑时 Tab 到下一张 · L 放大 · Ctrl+A 全选 · Ctrl+Z 撤销 · Ctrl+S 保存", look: "放大查看（L）", none: "没有符合筛选条件的图片。", broken: "无法读取",
    },
};

export const words = () => WORDS[chinese() ? "zh" : "en"];
