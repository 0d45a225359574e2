"""What an in-place call changes besides its argument: other names of the same memory.

The stacked program overwrites nothing: it runs `x.relu_()` as `x.relu()`. That is the same only where nothing reads the
old memory afterwards, under whatever name; anything else is refused. Knows nothing of stacked tensors.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

from torch import fx, nn

from hpo.training.stacking.supported import IN_PLACE_REPLACEMENTS, VIEWING_FUNCTIONS, VIEWING_LAYERS
from hpo.training.stacking.trace import is_metadata, require


def require_unread(node: fx.Node, root: nn.Module) -> None:
    """Refuse an in-place call whose argument, or another view of it, is read after it, or is the module's own."""
    order = {each: place for place, each in enumerate(node.graph.nodes)}
    sharing, todo = set[fx.Node](), node.all_input_nodes[:1]
    while todo:
        each = todo.pop()
        sharing.add(each)
        near = [user for user in each.users if user is not node and _shares(user, root)]
        near += each.all_input_nodes if _shares(each, root) else []
        todo += [other for other in near if other not in sharing and not is_metadata(other)]
    require(all(each.op != "get_attr" for each in sharing), f"'{node.name}'", "it changes what the module keeps")
    later = any(order[user] > order[node] for each in sharing for user in each.users)
    require(not later and bool(node.users), f"'{node.name}'", "what it changes in place is read again later")


def _shares(node: fx.Node, root: nn.Module) -> bool:
    """Return whether the node's value may share memory with what it is given."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return isinstance(module, VIEWING_LAYERS) or bool(getattr(module, "inplace", False))
    if is_metadata(node) or node.op not in ("call_function", "call_method"):
        return False
    return changes_argument(node) or node.target in VIEWING_FUNCTIONS


def changes_argument(node: fx.Node) -> bool:
    """Return whether the function or method that the node calls works in place."""
    if node.op not in ("call_function", "call_method") or is_metadata(node):
        return False
    place = _in_place_argument(node.target)
    return node.target in IN_PLACE_REPLACEMENTS or bool(node.kwargs.get("inplace")) or any(node.args[place : place + 1])


def without_in_place(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the node's call, less the one that has it work in place."""
    place = _in_place_argument(node.target)
    args = (*node.args[:place], *node.args[place + 1 :])
    return args, {key: value for key, value in node.kwargs.items() if key != "inplace"}


def _in_place_argument(target: object) -> int:
    """Return where a function of torch.nn.functional may be given `inplace`, which most are given by name."""
    names = list(inspect.signature(target).parameters) if isinstance(target, FunctionType) else []
    return names.index("inplace") if "inplace" in names else 1000
