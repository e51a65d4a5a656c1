"""LoRA Loom's door for ComfyUI. Nothing else lives here.

The nodes are imported only when ComfyUI asks, for pip installs this same folder as the package `lora_loom`.
"""
WEB_DIRECTORY = "./web/js"


async def comfy_entrypoint():
    """ComfyUI's V3 entry: the extension that lists the nodes."""
    from .nodes.extension import LoraLoom

    return LoraLoom()
