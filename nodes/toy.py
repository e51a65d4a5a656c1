"""ToyBase: the small model that comes with the pack, so that any PC can run the whole graph at once."""
from __future__ import annotations

from .schema import io, output, schema


class ToyBase(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ToyBase", "Toy Base", search_aliases=["test model", "tiny sd", "demo checkpoint", "测试模型", "训练"],
            description="A 3-million-parameter Stable Diffusion for 64x64 pictures of coloured shapes "
                        "(\"a red circle on a blue background\"). For trying things out on any PC.",
            inputs=[], outputs=[output(io.Model, "model"), output(io.Clip, "clip"), output(io.Vae, "vae")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        import folder_paths

        from ..trainer.backbones.comfy_toy import load

        return io.NodeOutput(*load(embedding_directory=folder_paths.get_folder_paths("embeddings")))
