"""What a program takes: the parameters of its `main`, and arguments checked against them.

A signature becomes a msgspec struct, so one declaration gives the JSON schema, the conversion and the messages.
Arguments come as JSON values, converted strictly, or as words of a command line: then numbers and booleans are
read from text, a repeated option is a list, and dicts and structs are JSON. Called by `kernel/loader.py` alone.
"""

import difflib
import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect as types

_LISTS = (types.ListType, types.SetType, types.FrozenSetType, types.VarTupleType, types.TupleType)
_OBJECTS = (types.DictType, types.StructType, types.TypedDictType, types.DataclassType, types.NamedTupleType)
_SCALARS = (type(None), bool, int, float, str)
_AT = re.compile(r"(.*) - at (?:`key` in )?`\$\.?(.*)`", re.DOTALL)


class LoadError(Exception):
    """There is no such program, or it cannot be one, or its arguments do not fit; the text is one line."""


class Parameters:
    """The parameters of one `main`."""

    def __init__(self, main: Callable[..., Any]) -> None:
        """Raises LoadError for parameters that nobody outside of the program could give."""
        signature = inspect.signature(main)
        try:
            hints = typing.get_type_hints(main, include_extras=True)
        except (NameError, TypeError, SyntaxError, AttributeError) as e:
            raise LoadError(f"the annotations of main cannot be read: {e}") from None
        self._parameters = dict(signature.parameters)
        for name, parameter in self._parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise LoadError(f"main takes `{parameter}`: give it parameters that have names")
            hints.setdefault(name, _type_of_default(parameter.default))
        self._hints = {name: hints[name] for name in self._parameters}
        for name, tp in self._hints.items():
            _check_type(name, tp)
        fields = [(p.name, self._hints[p.name], _field(p.default)) for p in self._parameters.values()]
        self._struct = msgspec.defstruct("parameters", fields, kw_only=True, forbid_unknown_fields=True)
        self.schema = self._schema()

    def _schema(self) -> dict[str, Any]:
        _, components = msgspec.json.schema_components([self._struct], ref_template="#/$defs/{name}")
        schema: dict[str, Any] = components.pop("parameters")
        return schema | {"$defs": components} if components else schema

    def rows(self) -> list[dict[str, Any]]:
        """Of each parameter: `name`, `type`, `required`, and `default` where it has one, both as text."""
        rows = []
        for name, parameter in self._parameters.items():
            row = {"name": name, "type": _spell(self._hints[name]), "required": _is_required(parameter)}
            if not row["required"]:
                row["default"] = _spell_default(parameter.default)
            rows.append(row)
        return rows

    def help(self) -> str:
        """The parameters as options of a command line, one a line."""
        lines = [
            (f"--{r['name'].replace('_', '-')}", r["type"], "required" if r["required"] else f"default {r['default']}")
            for r in self.rows()
        ]
        if not lines:
            return "It takes no parameters."
        widths = [max(len(line[i]) for line in lines) for i in range(2)]
        return "\n".join(f"  {name:<{widths[0]}}  {tp:<{widths[1]}}  {default}" for name, tp, default in lines)

    def bind(self, args: dict[str, Any], *, text: bool) -> dict[str, Any]:
        """`args` converted, and only those: defaults stay with the function. Raises LoadError."""
        given = {name.replace("-", "_"): value for name, value in args.items()}
        for name in given:
            if name not in self._parameters:
                raise LoadError(self._unknown(name))
        for name, parameter in self._parameters.items():
            if name not in given and _is_required(parameter):
                raise LoadError(f"parameter {name} is missing" + (f": give --{name} {_metavar(name)}" if text else ""))
        shaped = {n: _shape(n, v, self._info(n)) for n, v in given.items()} if text else given
        try:
            bound = msgspec.convert(shaped, self._struct, strict=not text, str_keys=True)
        except msgspec.ValidationError as e:
            raise LoadError(_explain(str(e), given if text else {})) from None
        return {name: getattr(bound, name) for name in given}

    def _info(self, name: str) -> types.Type:
        return types.type_info(self._hints[name])

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._parameters, n=1)
        if close:
            return f"there is no parameter {name}; did you mean {close[0]}?"
        if not self._parameters:
            return f"there is no parameter {name}: this program takes none"
        return f"there is no parameter {name}; it takes {', '.join(self._parameters)}"


# --- declaring --------------------------------------------------------------------------------------------------


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty


def _type_of_default(default: Any) -> Any:
    """An unannotated parameter is of its default's type."""
    return type(default) if isinstance(default, (bool, int, float, str, list, dict)) else Any


def _check_type(name: str, tp: Any) -> None:
    try:
        msgspec.json.schema(tp)
    except TypeError:
        raise LoadError(
            f"parameter {name} of main is a {_spell(tp)}, which cannot be given from outside: "
            "use str, int, float, bool, list, dict, Literal, an Enum or a Struct"
        ) from None


def _field(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return msgspec.field()
    if isinstance(default, _SCALARS):
        return msgspec.field(default=default)
    return msgspec.field(default_factory=lambda: default)


def _spell(tp: Any) -> str:
    """A type as its author wrote it, without `Annotated`'s extras."""
    if typing.get_origin(tp) is typing.Annotated:
        tp = typing.get_args(tp)[0]
    return tp.__name__ if isinstance(tp, type) and not typing.get_args(tp) else str(tp).replace("typing.", "")


def _spell_default(default: Any) -> str:
    try:
        return msgspec.json.encode(default).decode()
    except (TypeError, ValueError):
        return repr(default)


def _metavar(name: str) -> str:
    return name.upper()


# --- reading text -----------------------------------------------------------------------------------------------


def _shape(name: str, given: Any, info: types.Type) -> Any:
    """Words of a command line in the shape of `info`: lists of what was repeated, JSON where only JSON will do."""
    if isinstance(info, types.Metadata):
        return _shape(name, given, info.type)
    if isinstance(info, types.UnionType):
        return _shape(name, given, _member(given, info))
    if isinstance(info, _LISTS):
        if isinstance(given, str) and given.startswith("["):
            return _json(name, given)
        item = getattr(info, "item_type", types.AnyType())
        return [_shape(name, word, item) for word in (given if isinstance(given, list) else [given])]
    if isinstance(given, list):
        raise LoadError(f"parameter {name} was given {len(given)} times")
    return _json(name, given) if isinstance(info, _OBJECTS) else given


def _member(given: Any, info: types.UnionType) -> types.Type:
    """The member of a union that these words are for; AnyType leaves them as they are."""
    lists = [t for t in info.types if isinstance(t, _LISTS)]
    objects = [t for t in info.types if isinstance(t, _OBJECTS)]
    if isinstance(given, list):
        return lists[0] if lists else types.AnyType()
    if info.includes_none and given == "null":
        return types.AnyType()
    if any(isinstance(t, types.StrType) for t in info.types):
        return types.AnyType()
    if objects and str(given).startswith("{"):
        return objects[0]
    return lists[0] if lists and str(given).startswith("[") else types.AnyType()


def _json(name: str, given: Any) -> Any:
    try:
        return msgspec.json.decode(given)
    except (msgspec.DecodeError, TypeError):
        raise LoadError(f"parameter {name}: expected JSON, got {given!r}") from None


def _explain(message: str, given: dict[str, Any]) -> str:
    """msgspec's message in our words; `given` has the words of a command line."""
    found = _AT.fullmatch(message)
    what, where = (found[1], found[2]) if found else (message, "")
    name = re.split(r"[.\[]", where)[0]
    what = what.replace("`", "")
    value = given.get(name)
    if value is True:
        return f"parameter {name} needs a value: --{name} {_metavar(name)}"
    if isinstance(value, str) and where == name:
        what = re.sub(r"got str$", f"got {value!r}", what)
    return f"parameter {where}: {what[:1].lower()}{what[1:]}"
