"""Store URLs: parsed once, the same for every scheme, with nothing secret in what is printed."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import msgspec

from dagonizer.errors import StoreURLError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

# RFC 3986, appendix B, with the scheme's own characters (section 3.1).
_PARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(#.*)?", re.DOTALL)
_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# Credentials before a host where the "//" was forgotten. In a directory a colon stands further behind.
_CREDENTIALS_IN_PATH = re.compile(r"\A(/*)[^/]*:.*@", re.DOTALL)
_MAX_PORT = 65535


class Host(NamedTuple):
    """A host of a URL: its name or address, and its port if the URL names one."""

    name: str
    port: int | None


class Parameter(msgspec.Struct, frozen=True):
    """A query parameter that a scheme knows: its name, the type of its value, its default, and what it is for."""

    name: str
    type: Any
    default: Any
    description: str


@dataclass(frozen=True, slots=True, repr=False)
class StoreURL:
    """A parsed store URL, percent-decoded.

    ``str()`` and ``repr()`` show neither the credentials nor the values of the query, so a StoreURL may be logged.
    ``path`` begins with a slash as in the URL, if it does there (``file:rel`` has none); ``query`` holds pairs of name
    and value in their order; what the URL does not have is None or empty.
    """

    scheme: str
    username: str | None = None
    password: str | None = None
    hosts: tuple[Host, ...] = ()
    path: str = ""
    query: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse ``scheme:path`` or ``scheme://user:password@host:port,host:port/path?name=value&…``.

        Everything but the scheme may be percent-encoded; ``+`` is not a space. Raises ``StoreURLError``, which repeats
        no part of the URL that may be secret.
        """
        if not isinstance(url, str):
            raise StoreURLError(f"a store URL must be a str, not {type(url).__name__}")
        match = _PARTS.fullmatch(url)
        if match is None:
            raise StoreURLError("not a store URL: it must start with a scheme, as in file:///var/checkpoints")
        scheme, authority, path, query, fragment = match.groups()
        scheme = scheme.lower()
        if fragment is not None:
            raise StoreURLError(f"{scheme}: URL: '#' must be written %23")
        userinfo, _, hosts = (authority or "").rpartition("@")
        username, colon, password = userinfo.partition(":")
        if authority and "@" in path:
            # A password with an unescaped '/' would end up in the path, and in every message that shows it.
            raise StoreURLError(f"{scheme}: URL: write '/' in a password as %2F, and '@' in a path as %40")
        if ":" in hosts and not userinfo and not path and "@" in (query or ""):
            # The beginning of such a password would be taken for a port.
            raise StoreURLError(f"{scheme}: URL: write '?' in a password as %3F, and '@' in a query as %40")
        return cls(
            scheme=scheme,
            username=_decode(scheme, "user name", username) or None,
            password=_decode(scheme, "password", password) if colon else None,
            hosts=tuple(_host(scheme, host) for host in hosts.split(",")) if hosts else (),
            path=_decode(scheme, "path", path),
            query=tuple(_pair(scheme, pair) for pair in query.split("&")) if query else (),
        )

    def read_parameters(self, parameters: Sequence[Parameter]) -> dict[str, Any]:
        """Return the query as typed values by name; parameters that the URL does not name are left out.

        Raises ``StoreURLError`` for an unknown or repeated parameter, and for a value of another type.
        """
        known = {parameter.name: parameter for parameter in parameters}
        values: dict[str, Any] = {}
        for name, text in self.query:
            if name not in known:
                import difflib  # noqa: PLC0415 - only this error needs it

                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"it knows {', '.join(known) or 'none'}"
                raise StoreURLError(f"{self}: unknown parameter {name!r}; {hint}")
            if name in values:
                raise StoreURLError(f"{self}: parameter {name!r} is given twice")
            try:
                values[name] = msgspec.convert(text, known[name].type, strict=False)
            except msgspec.ValidationError:
                # Without its cause, which repeats the value.
                raise StoreURLError(
                    f"{self}: parameter {name!r} must be {type_name(known[name].type)} ({known[name].description})"
                ) from None
        return values

    def __str__(self) -> str:
        credentials = "***@" if self.username is not None or self.password is not None else ""
        hosts = ",".join(_shown_host(host) for host in self.hosts)
        authority = f"//{credentials}{hosts}" if credentials or hosts or self.path.startswith("/") else ""
        path = self.path if self.hosts or credentials else _CREDENTIALS_IN_PATH.sub(r"\1***@", self.path)
        query = "&".join(f"{name}=***" for name, _ in self.query)
        return f"{self.scheme}:{authority}{path}" + (f"?{query}" if query else "")

    def __repr__(self) -> str:
        return f"<StoreURL {self}>"


def parameter(default: Any, description: str) -> Any:  # noqa: ANN401 - like dataclasses.field, it stands for the field's type
    """Declare a field of an adapter's config dataclass that a query parameter of the same name sets."""
    return field(default=default, metadata={"description": description})


def parameters_of(config: type) -> tuple[Parameter, ...]:
    """Return the query parameters that the dataclass ``config`` declares by ``parameter``."""
    types = get_type_hints(config, include_extras=True)
    return tuple(
        Parameter(f.name, types[f.name], None if f.default is MISSING else f.default, f.metadata["description"])
        for f in dataclasses.fields(config)
        if "description" in f.metadata
    )


def type_name(of: Any) -> str:  # noqa: ANN401 - any type form
    """Return a parameter's type in words: ``true or false``, ``a whole number``, ``one of a, b``."""
    return _named(msgspec.inspect.type_info(of))


def _named(info: msgspec.inspect.Type) -> str:
    match info:
        case msgspec.inspect.UnionType(types=types):
            return " or ".join(_named(part) for part in types if not isinstance(part, msgspec.inspect.NoneType))
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType(ge=low):
            return "a whole number" + (f" of at least {low}" if low is not None else "")
        case msgspec.inspect.FloatType(gt=low):
            return "a number" + (f" above {low:g}" if low is not None else "")
        case msgspec.inspect.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case _:
            return "text"


def _decode(scheme: str, part: str, text: str) -> str:
    from urllib.parse import unquote  # noqa: PLC0415 - slow to import, and only a URL needs it

    if _BAD_ESCAPE.search(text):
        raise StoreURLError(f"{scheme}: URL: the {part} has a '%' that is not followed by two hexadecimal digits")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        # Without its cause, which holds the undecoded text.
        raise StoreURLError(f"{scheme}: URL: the {part} is not percent-encoded UTF-8") from None


def _host(scheme: str, text: str) -> Host:
    match = _HOST.fullmatch(text)
    if match is None or (match[2] is not None and int(match[2]) > _MAX_PORT):
        raise StoreURLError(
            f"{scheme}: URL: a host must be name, name:port or [IPv6 address]:port, hosts separated by commas; "
            "write '@', ':', '/', '?' and '#' in a password as %40, %3A, %2F, %3F and %23"
        )
    name = _decode(scheme, "host", match[1].removeprefix("[").removesuffix("]"))
    if not name:
        raise StoreURLError(f"{scheme}: URL: a host has no name")
    return Host(name, None if match[2] is None else int(match[2]))


def _shown_host(host: Host) -> str:
    name = f"[{host.name}]" if ":" in host.name else host.name
    return name if host.port is None else f"{name}:{host.port}"


def _pair(scheme: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise StoreURLError(f"{scheme}: URL: a parameter must be written name=value")
    return _decode(scheme, "name of a parameter", name), _decode(scheme, "value of a parameter", value)
