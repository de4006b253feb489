"""The library as one package, for programs that have a `utils` or a `config` of their own.

`from pix2seq import Predictor`, or `pix2seq.infer.predictor`, `pix2seq.config` and so on: each of
our top-level modules, under this name. It is the source of the fixed folders: while a module is
loaded, the absolute imports in it (`from utils.files import …`) become imports of this package. So
nothing is put into `sys.path` or found as `utils`, and it does not matter what else is imported,
before or afterwards. Objects pickle by these names, also into processes that are started.

A class of `pix2seq.infer.results` is not the one of `infer.results`: use one of both ways.
"""

import ast
import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path

OURS = ("config", "dataset", "download", "infer", "models", "tokenizer", "train", "utils")
HERE = Path(__file__).resolve().parent
# Of a checkout the folders are beside this one, of an installed wheel they are in it.
ROOT = HERE if (HERE / "infer").is_dir() else HERE.parent


def prefixed(name: str) -> str:
    """The name of a module in this package, if it is one of ours."""
    return f"{__name__}.{name}" if name.partition(".")[0] in OURS else name


class _Rename(ast.NodeTransformer):
    """Makes absolute imports of our modules imports of this package."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if node.level == 0 and node.module:
            node.module = prefixed(node.module)
        return node

    def visit_Import(self, node: ast.Import) -> ast.Import:
        names = []
        for alias in node.names:
            name = prefixed(alias.name)
            if name != alias.name and not alias.asname:  # `import utils.files` binds `utils`
                top = alias.name.partition(".")[0]
                names.append(ast.alias(name, "_"))
                alias = ast.alias(top, top)
                name = prefixed(top)
            names.append(ast.alias(name, alias.asname))
        return ast.copy_location(ast.Import(names), node)

    def visit_Call(self, node: ast.Call) -> ast.Call:
        """`import_module("utils.…")`, also with an f-string that begins so."""
        self.generic_visit(node)
        function = node.func
        called = getattr(function, "attr", getattr(function, "id", None))
        if called == "import_module" and node.args:
            text = node.args[0]
            text = text.values[0] if isinstance(text, ast.JoinedStr) else text
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                text.value = prefixed(text.value)
        return node


class _Loader(SourceFileLoader):
    """Loads a module with the imports of `_Rename`; the lines of its source stay as they are."""

    def source_to_code(self, data, path, *, _optimize=-1):
        tree = ast.fix_missing_locations(_Rename().visit(ast.parse(data, path)))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def path_stats(self, path):
        """No byte code is kept: it would be taken for that of the plain module."""
        raise OSError


class _Finder(MetaPathFinder):
    """Finds `pix2seq.utils.files` where `utils.files` is."""

    def find_spec(self, name, path=None, target=None) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        if package != __name__ or rest.partition(".")[0] not in OURS:
            return None
        spec = PathFinder.find_spec(name, [str(ROOT)] if "." not in rest else path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path[:] = [one for one in sys.meta_path if type(one).__module__ != __name__]  # reloaded
sys.meta_path.insert(0, _Finder())

_HOMES = {
    "Predictor": "infer.predictor",
    "UserError": "utils.errors",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """`pix2seq.Predictor` and our modules: loaded at the first use."""
    if name in _HOMES:
        return getattr(importlib.import_module(prefixed(_HOMES[name])), name)
    if name in OURS:
        return importlib.import_module(prefixed(name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *OURS])
