"""
What the instructions of a stage set: its variables, and what the image says of commands.

Spec: Dockerfile reference; what it leaves open is as BuildKit has it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from sandboxlib.build import history
from sandboxlib.build.dockerfile import Instruction
from sandboxlib.build.flags import Flags
from sandboxlib.build.graph import Stage, Step, Warned
from sandboxlib.build.operations import FromImage, FromStage
from sandboxlib.build.origins import Known, base_of
from sandboxlib.build.stages import Draft, Outline
from sandboxlib.build.variables import expand
from sandboxlib.build.words import TIMES, environment, ports, retries, time_of
from sandboxlib.image.model import Config, Health, ImageConfig

#: Where commands are looked for where nobody says so.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL = ("/bin/sh", "-c")
_SECRET = re.compile(
    r"(?:^|_)(?:apikey|api_key|auth|credential|credentials|key|password|pword|passwd|secret|token)(?:_|$)",
    re.IGNORECASE,
)
_PUBLIC = re.compile(r"(?:^|_)public(?:_|$)", re.IGNORECASE)
_SIGNAL = re.compile(r"(?:SIG)?(?:[A-Z][A-Z0-9]*(?:[+-]\d{1,2})?)", re.IGNORECASE | re.ASCII)


class Settings:
    """What is set at one place of a stage, and what the instructions before it have set."""

    def __init__(
        self,
        outline: Outline,
        draft: Draft,
        known: Known,
        done: Mapping[int, Settings],
        warnings: list[Warned],
    ) -> None:
        self.outline = outline
        self.draft = draft
        self._warnings = warnings
        self.steps: list[Step] = []
        self.seen: set[str] = set()
        #: What ENV has set, in order; what ARG has set; and all that ARG has named, in order.
        self.env: dict[str, str] = {}
        self.args: dict[str, str] = {}
        self.declared: dict[str, None] = {}
        #: The image's configuration, by the names of `Config`.
        self.values: dict[str, Any] = {}
        self.author = ""
        self.platform = draft.platform
        self.base = base_of(outline, draft)
        if isinstance(self.base, FromStage):
            self._follow(done[self.base.number])
        elif isinstance(self.base, FromImage):
            digest, image = known[self.base]
            self.base = msgspec.structs.replace(self.base, digest=digest)
            self._begin(image)
        self.env.setdefault("PATH", PATH)
        self.cwd = posixpath.normpath(posixpath.join("/", self.values.get("working_dir") or "/"))

    def _follow(self, above: Settings) -> None:
        """Begin with what another stage has come to."""
        self.platform = above.platform
        self.env, self.args, self.declared = dict(above.env), dict(above.args), dict(above.declared)
        self.values, self.author = dict(above.values), above.author
        self.values.pop("on_build", None)

    def _begin(self, image: ImageConfig) -> None:
        """Begin with what an image says."""
        found = msgspec.structs.asdict(image.config or Config())
        self.values = {name: value for name, value in found.items() if value is not None}
        # What it triggers is done here, and not once more later.
        self.values.pop("on_build", None)
        self.env = environment(self.values.pop("env", ()))
        self.author = image.author or ""

    # ---- results ---------------------------------------------------------------------------

    def stage(self, labels: Mapping[str, str]) -> Stage:
        """The stage as it is now, with *labels* besides its own."""
        values = dict(self.values)
        if labels:
            values["labels"] = {**(values.get("labels") or {}), **labels}
        values["env"] = tuple(f"{name}={value}" for name, value in self.env.items())
        draft = self.draft
        return Stage(
            draft.number, draft.title, draft.start.line, draft.start.text, self.base, self.platform,
            tuple(self.steps), Config(**values), self.author,
        )  # fmt: skip

    # ---- for each instruction ---------------------------------------------------------------

    @property
    def variables(self) -> dict[str, str]:
        """What words and commands see: what ENV says wins, wherever it stands."""
        return self.args | self.env

    def expand(self, each: Instruction, text: str) -> str:
        """*text* with its variables replaced. Raises: VariableError."""
        found = expand(text, self.variables, self.outline.dockerfile.escape)
        self.undefined(each, found.unset)
        return found.text

    def undefined(self, each: Instruction, names: frozenset[str]) -> None:
        """Note variables that nobody has set."""
        for name in sorted(names):
            self.warn("UndefinedVar", each, f"${name} is not set")

    def warn(self, rule: str, each: Instruction, text: str) -> None:
        """Note what is likely not meant."""
        self._warnings.append(Warned(rule, each.line, text))

    def _once(self, each: Instruction) -> None:
        if each.name in self.seen:
            self.warn(
                "MultipleInstructionsDisallowed",
                each,
                f"of several {each.name} in a stage the last one counts",
            )
        self.seen.add(each.name)

    def _on_build(self, each: Instruction) -> None:
        if each.name in {"FROM", "MAINTAINER"}:
            raise ValueError(f"ONBUILD cannot trigger {each.name}")
        self.values["on_build"] = (*self.values.get("on_build", ()), each.expression)

    # ---- what only changes the configuration -----------------------------------------------

    def do_arg(self, each: Instruction, _: Flags) -> tuple[str, None]:
        """Take an ARG: what history says of it, and what it does to files."""
        shown = []
        given, outer = self.outline.request.args, self.outline.globals
        for name, default in self.outline.pairs(each):
            self._secret("ARG", name, each)
            value = given.get(name)
            if value is None and default is not None:
                value = self.expand(each, default)
            elif value is None:
                value = outer.get(name)
            if value is not None:
                self.args[name] = value
            self.declared.setdefault(name)
            shown.append((name, value))
        return history.arguments(shown), None

    def _secret(self, instruction: str, name: str, each: Instruction) -> None:
        if _SECRET.search(name) and not _PUBLIC.search(name):
            self.warn(
                "SecretsUsedInArgOrEnv",
                each,
                f"{instruction} {name}: it is kept in the image's history; use RUN --mount=type=secret",
            )

    def _pairs(self, each: Instruction) -> list[tuple[str, str]]:
        if not each.args:
            raise ValueError(f"{each.name} needs a name and a value: {each.name} name=value")
        if not each.delimited:
            self.warn("LegacyKeyValueFormat", each, f"write {each.name} name=value, with '='")
        words = [self.expand(each, word) for word in each.args]
        found = list(zip(words[::2], words[1::2], strict=True))
        if not all(name for name, _ in found):
            raise ValueError(f"{each.name} has a value without a name")
        return found

    def do_env(self, each: Instruction, _: Flags) -> tuple[str, None]:
        """Take an ENV: what history says of it, and what it does to files."""
        found = self._pairs(each)
        for name, value in found:
            if "=" in name or "\0" in name + value:
                raise ValueError(f"{name[:60]!r} is no name of a variable")
            self._secret("ENV", name, each)
            self.env[name] = value
        return history.pairs("ENV", found), None

    def do_label(self, each: Instruction, _: Flags) -> tuple[str, None]:
        """Take a LABEL: what history says of it, and what it does to files."""
        found = self._pairs(each)
        self.values["labels"] = {**(self.values.get("labels") or {}), **dict(found)}
        return history.pairs("LABEL", found), None

    def do_maintainer(self, each: Instruction, _: Flags) -> tuple[str, None]:
        """Take a MAINTAINER: what history says of it, and what it does to files."""
        self.warn("MaintainerDeprecated", each, "use LABEL org.opencontainers.image.authors=…")
        self.author = self.only(each)
        return f"MAINTAINER {self.author}", None

    def only(self, each: Instruction) -> str:
        """The one argument. Raises: ValueError: It is not one."""
        if len(each.args) != 1 or not each.args[0]:
            raise ValueError(f"{each.name} needs one argument")
        return each.args[0]

    def do_user(self, each: Instruction, _: Flags) -> tuple[str, None]:
        """Take an USER: what history says of it, and what it does to files."""
        user = self.expand(each, self.only(each))
        if not user:
            raise ValueError("USER is empty once its variables are replaced")
        self.values["user"] = user
        return f"USER {user}", None

    def do_volume(self, each: Instruction, _: Flags) -> tuple[str, None]:
        """Take a VOLUME: what history says of it, and what it does to files."""
        found = [self.expand(each, word).strip() for word in each.args]
        if not found or not all(found):
            raise ValueError("VOLUME needs paths, none of them empty")
        self.values["volumes"] = {**(self.values.get("volumes") or {}), **{path: {} for path in found}}
        return history.listed("VOLUME", found), None

    def do_expose(self, each: Instruction, _: Flags) -> tuple[str, None]:
        """Take an EXPOSE: what history says of it, and what it does to files."""
        words: list[str] = []
        for word in each.args:
            found = expand(word, self.variables, self.outline.dockerfile.escape)
            self.undefined(each, found.unset)
            words += found.words
        if not words:
            raise ValueError("EXPOSE needs a port")
        found_ports = [port for word in sorted(words) for port in ports(word)]
        self.values["exposed_ports"] = {
            **(self.values.get("exposed_ports") or {}),
            **{port: {} for port in found_ports},
        }
        return history.listed("EXPOSE", found_ports), None

    def do_stopsignal(self, each: Instruction, _: Flags) -> tuple[str, None]:
        """Take a STOPSIGNAL: what history says of it, and what it does to files."""
        name = self.expand(each, self.only(each))
        if not _SIGNAL.fullmatch(name) and not (name.isdecimal() and 0 < int(name[:4]) < 65):
            raise ValueError(f"{name[:40]!r} is no signal such as SIGTERM or 15")
        self.values["stop_signal"] = name
        return f"STOPSIGNAL {name}", None

    def do_shell(self, each: Instruction, _: Flags) -> tuple[str, None]:
        """Take a SHELL: what history says of it, and what it does to files."""
        if not each.json or not each.args:
            raise ValueError('SHELL needs a list in JSON: SHELL ["/bin/bash", "-c"]')
        self.values["shell"] = each.args
        return history.listed("SHELL", each.args), None

    def command(self, each: Instruction) -> tuple[str, ...]:
        """The command of a RUN, CMD or ENTRYPOINT, with the shell that it goes through."""
        if each.json:
            return each.args
        if not each.args:
            return ()
        if not self.values.get("shell") and each.name in {"CMD", "ENTRYPOINT"}:
            self.warn(
                "JSONArgsRecommended",
                each,
                f"{each.name} through a shell does not get signals: write it as a list",
            )
        return (*(self.values.get("shell") or SHELL), " ".join(each.args))

    def do_cmd(self, each: Instruction, _: Flags) -> tuple[str, None]:
        """Take a CMD: what history says of it, and what it does to files."""
        self._once(each)
        self.values["cmd"] = self.command(each)
        return f"CMD {history.quoted(self.values['cmd'])}", None

    def do_entrypoint(self, each: Instruction, _: Flags) -> tuple[str, None]:
        """Take an ENTRYPOINT: what history says of it, and what it does to files."""
        self._once(each)
        found = self.command(each)
        self.values["entrypoint"] = found or None
        if "CMD" not in self.seen:
            # What the base says is for its own.
            self.values.pop("cmd", None)
        return f"ENTRYPOINT {history.quoted(found)}", None

    def do_healthcheck(self, each: Instruction, flags: Flags) -> tuple[str, None]:
        """Take a HEALTHCHECK: what history says of it, and what it does to files."""
        self._once(each)
        if not each.args:
            raise ValueError("HEALTHCHECK is followed by CMD and a command, or by NONE")
        kind, rest = each.args[0].upper(), each.args[1:]
        if kind == "NONE":
            if rest or each.flags:
                raise ValueError("HEALTHCHECK NONE has neither arguments nor flags")
            found = Health(("NONE",))
        elif kind == "CMD":
            if not rest:
                raise ValueError("HEALTHCHECK CMD needs a command")
            found = Health(
                ("CMD" if each.json else "CMD-SHELL", *rest),
                **{name: time_of(flags, name.replace("_", "-")) for name in TIMES},
                retries=retries(flags.one("retries")),
            )
        else:
            raise ValueError(
                f"HEALTHCHECK is followed by CMD and a command, or by NONE, not by {kind[:40]!r}"
            )
        self.values["healthcheck"] = found
        return history.health(found), None


__all__ = ["PATH", "SHELL", "Settings"]
