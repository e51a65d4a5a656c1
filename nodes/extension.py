"""The list of nodes that ComfyUI asks for."""
from __future__ import annotations

from . import folders, routes
from .augment import AugmentDataset
from .caption import AutoCaption
from .choose import ChooseCheckpoint
from .config import LoRAConfig
from .dataset import LoadDataset
from .filter import FilterDataset
from .preview import PreviewSample
from .schema import ComfyExtension, io
from .toy import ToyBase
from .train import TrainLoRA


class LoraLoom(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        folders.register()  # not in on_load, which 0.3.64 never calls
        folders.bring_example()
        routes.register()
        return [LoadDataset, AugmentDataset, FilterDataset, AutoCaption, LoRAConfig, TrainLoRA, PreviewSample, ChooseCheckpoint, ToyBase]
