"""One module per action group, under the group's own name.

Place in the pipeline: embeddings, heads and metrics are kept per group. ``nn.ModuleDict`` refuses a member called
``keys``, the reference name of the first group, so this is a plain module with a dict's reading side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn


class GroupModules(nn.Module):
    """Modules by group name, in order."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def __getitem__(self, name: str) -> nn.Module:
        return self._modules[name]  # type: ignore[return-value]

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        return ((name, module) for name, module in self._modules.items() if module is not None)
