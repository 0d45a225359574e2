"""Check that in-place operations of a traced graph can be replaced by ordinary ones.

The stacked program runs nothing in place: it runs `x.relu_()` as `x.relu()`. The results are the same only if nothing
reads the changed memory afterwards, through the argument or through a view of it. Otherwise CannotStackError is raised.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

from torch import fx, nn

from hpo.training.stacking.tracing.supported import IN_PLACE_REPLACEMENTS, VIEWING_FUNCTIONS, VIEWING_LAYERS
from hpo.training.stacking.tracing.trace import is_metadata, require


def require_not_read_later(node: fx.Node, root: nn.Module) -> None:
    """Raise CannotStackError where the argument of an in-place call is read later or belongs to the module.

    Views of the argument count as the argument.
    """
    order = {each: index for index, each in enumerate(node.graph.nodes)}
    sharing, todo = set[fx.Node](), node.all_input_nodes[:1]
    while todo:
        each = todo.pop()
        sharing.add(each)
        neighbours = [user for user in each.users if user is not node and _shares_memory(user, root)]
        neighbours += each.all_input_nodes if _shares_memory(each, root) else []
        todo += [other for other in neighbours if other not in sharing and not is_metadata(other)]
    require(all(each.op != "get_attr" for each in sharing), f"'{node.name}'", "it changes a tensor of the module")
    later = any(order[user] > order[node] for each in sharing for user in each.users)
    require(not later and bool(node.users), f"'{node.name}'", "the tensor that it changes in place is read again later")


def _shares_memory(node: fx.Node, root: nn.Module) -> bool:
    """Return whether the node's value may share memory with its arguments."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return isinstance(module, VIEWING_LAYERS) or bool(getattr(module, "inplace", False))
    if is_metadata(node) or node.op not in ("call_function", "call_method"):
        return False
    return changes_argument(node) or node.target in VIEWING_FUNCTIONS


def changes_argument(node: fx.Node) -> bool:
    """Return whether the node calls a function or method that works in place."""
    if node.op not in ("call_function", "call_method") or is_metadata(node):
        return False
    index = _in_place_argument(node.target)
    return node.target in IN_PLACE_REPLACEMENTS or bool(node.kwargs.get("inplace")) or any(node.args[index : index + 1])


def without_in_place(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments of the node's call without `inplace`."""
    index = _in_place_argument(node.target)
    args = (*node.args[:index], *node.args[index + 1 :])
    return args, {key: value for key, value in node.kwargs.items() if key != "inplace"}


def _in_place_argument(target: object) -> int:
    """Return the position of a function's parameter `inplace`; a number beyond all arguments if it has none."""
    names = list(inspect.signature(target).parameters) if isinstance(target, FunctionType) else []
    return names.index("inplace") if "inplace" in names else 1000
