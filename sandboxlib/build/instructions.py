"""
What each instruction does, where it stands.

Spec: Dockerfile reference; what it leaves open is as BuildKit has it.
"""

from __future__ import annotations

import posixpath

from sandboxlib.build import history, mounts, remote
from sandboxlib.build.dockerfile import Instruction
from sandboxlib.build.flags import Flags
from sandboxlib.build.graph import Step
from sandboxlib.build.modes import parse as parse_mode
from sandboxlib.build.operations import Copy, FromContext, FromText, Mount, Op, Origin, Run, Source, Workdir
from sandboxlib.build.origins import origin_of
from sandboxlib.build.patterns import Ignore, PatternError, cleaned, is_wild, segment
from sandboxlib.build.settings import SHELL, Settings
from sandboxlib.build.stages import PROXIES
from sandboxlib.build.variables import expand
from sandboxlib.build.words import absolute, check_owner, destination, document, inside, is_numeric
from sandboxlib.errors import DockerfileError

_MOST_STEPS = 10_000


class StageState(Settings):
    """A stage while its instructions are taken one by one."""

    # ---- one instruction -------------------------------------------------------------------

    def take(self, each: Instruction) -> None:
        """Take the next instruction. Raises: DockerfileError: It makes no sense here."""
        if self.draft.name in self.outline.request.contexts or self.draft.name in self.outline.request.images:
            # What was given takes the place of the whole stage.
            return
        if len(self.steps) >= _MOST_STEPS:
            raise self.outline.refuse(each, f"a stage of more than {_MOST_STEPS} steps")
        try:
            flags = Flags(each)
            if each.trigger:
                self._on_build(each)
                return
            created_by, op = getattr(self, f"do_{each.name.lower()}")(each, flags)
        except DockerfileError:
            raise
        except ValueError as error:
            raise self.outline.refuse(each, str(error)) from None
        self.steps.append(Step(len(self.steps) + 1, each.line, each.text, created_by, op))

    # ---- what changes files ----------------------------------------------------------------

    def do_workdir(self, each: Instruction, _: Flags) -> tuple[str, Op | None]:
        """Take a WORKDIR: what history says of it, and what it does to files."""
        written = self.expand(each, self.only(each))
        if "WORKDIR" not in self.seen and not written.startswith("/"):
            self.warn("WorkdirRelativePath", each, f"{written!r} is relative to what the base says")
        self.seen.add("WORKDIR")
        path = absolute(self.cwd, written)
        self.cwd = self.values["working_dir"] = path
        op = Workdir(path=path, user=self.values.get("user") or "") if path != "/" else None
        return f"WORKDIR {path}", op

    def do_run(self, each: Instruction, flags: Flags) -> tuple[str, Op]:
        """Take a RUN: what history says of it, and what it does to files."""
        if not each.args or not any(each.args):
            raise ValueError("RUN needs a command")
        argv, script = self._line(each)
        network = flags.one("network") or self.outline.request.network
        if network not in {"default", "none", "host"}:
            raise ValueError(f"--network is default, none or host, not {network[:40]!r}")
        security = flags.one("security") or "sandbox"
        if security not in {"sandbox", "insecure"}:
            raise ValueError(f"--security is sandbox or insecure, not {security[:40]!r}")
        env = self.variables
        found = tuple(self._mount(each, text) for text in flags.all("mount"))
        taken = [mount.target for mount in found if mount.target]
        if len(set(taken)) < len(taken):
            raise ValueError("two mounts have the same target")
        given = self.outline.request.args
        op = Run(
            argv=argv,
            env=tuple(sorted(env.items())),
            user=self.values.get("user") or "",
            cwd=self.cwd,
            mounts=found,
            network=network,
            insecure=security == "insecure",
            devices=tuple(self.expand(each, text) for text in flags.all("device")),
            script=script,
            proxies=tuple(sorted((name, given[name]) for name in PROXIES & given.keys() - env.keys())),
        )
        return history.run(argv, {name: env.get(name, "") for name in self.declared}), op

    def _line(self, each: Instruction) -> tuple[tuple[str, ...], tuple[str, str] | None]:
        """The command of a RUN, and the file that it is where a document has its own interpreter."""
        if not each.heredocs:
            return self.command(each), None
        first = each.heredocs[0]
        shell = self.values.get("shell") or SHELL
        if len(each.heredocs) == 1 and document(each.args[0]):
            if not first.content.startswith("#!"):
                return (*shell, first.content), None
            name = posixpath.basename(first.name) or "script"
            return (f"/dev/pipes/{name}",), (name, first.content)
        # The shell reads them itself.
        text = "\n".join((each.args[0], *(f"{doc.raw}{doc.name}" for doc in each.heredocs)))
        return (*shell, text), None

    def _mount(self, each: Instruction, text: str) -> Mount:
        return mounts.parse(
            text,
            self.cwd,
            lambda word: self.expand(each, word),
            lambda name: self._from(each, name),
        )

    def _from(self, each: Instruction, name: str) -> Origin:
        return origin_of(self.outline, self.outline.origin(each, name, self.draft), self.draft)

    def do_copy(self, each: Instruction, flags: Flags) -> tuple[str, Op]:
        """Take a COPY: what history says of it, and what it does to files."""
        return self._copied(each, flags)

    def do_add(self, each: Instruction, flags: Flags) -> tuple[str, Op]:
        """Take an ADD: what history says of it, and what it does to files."""
        return self._copied(each, flags)

    def _copied(self, each: Instruction, flags: Flags) -> tuple[str, Op]:
        if len(each.args) < 2:
            raise ValueError(f"{each.name} needs a source and a destination")
        *given, last = each.args
        documents = {doc.name: doc for doc in each.heredocs}
        if document(last):
            raise ValueError("a here-document can be a source, not the destination")
        checksum = self.expand(each, flags.one("checksum"))
        origin = self._from(each, flags.one("from")) if flags.one("from") else FromContext()
        parents = bool(flags.true("parents"))
        sources: list[Source] = []
        shown: list[str] = []
        for word in given:
            name = document(word)
            if name and name in documents:
                doc = documents[name]
                content = doc.content
                if doc.expand:
                    found = expand(content, self.variables, quotes_mean_nothing=True)
                    self.undefined(each, found.unset)
                    content = found.text
                sources.append(Source(FromText(content), doc.name))
                shown.append(f"<<{doc.name}")
                continue
            text = self.expand(each, word)
            shown.append(text)
            sources.append(self._source(each, text, origin, checksum, flags, parents=parents))
        if checksum and (len(sources) != 1 or isinstance(sources[0].origin, (FromContext, FromText))):
            raise ValueError("--checksum is for one source that is a URL or a repository")
        target = destination(self.cwd, self.expand(each, last))
        chown, chmod = self.expand(each, flags.one("chown")), self.expand(each, flags.one("chmod"))
        if chmod:
            parse_mode(chmod)
        check_owner(chown)
        exclude = tuple(self.expand(each, word) for word in flags.all("exclude"))
        Ignore(cleaned(exclude))
        op = Copy(
            sources=tuple(sources), destination=target, chown=chown, chmod=chmod,
            link=bool(flags.true("link")), parents=parents, exclude=exclude,
            unpack=flags.true("unpack"), add=each.name == "ADD",
        )  # fmt: skip
        if op.link and chown and not is_numeric(chown):
            raise ValueError(
                "--link does not look at the files below, so --chown takes numbers there, no names"
            )
        text = history.copy(
            each.name, shown, self.expand(each, last), chown=chown, chmod=chmod, parents=parents
        )
        return text, op

    def _source(
        self, each: Instruction, text: str, origin: Origin, checksum: str, flags: Flags, *, parents: bool
    ) -> Source:
        if each.name == "ADD":
            found = remote.source(text, checksum, keep=bool(flags.true("keep-git-dir")))
            if found is not None:
                return found
        elif (
            isinstance(origin, FromContext)
            and not origin.name
            and (remote.is_http(text) or remote.is_git(text))
        ):
            raise ValueError("COPY takes no URL and no repository: ADD does")
        if not text:
            raise ValueError(f"{each.name} has a source that is empty once its variables are replaced")
        pivot = 0
        if parents:
            before, dot, behind = text.partition("/./")
            if dot:
                top = inside(before)
                path = posixpath.join(top, inside(behind)) if top else inside(behind)
                pivot = len(top) + 1 if top else 0
            else:
                path = inside(text)
        else:
            path = inside(text)
        if "\0" in path:
            raise ValueError(f"{each.name} has a source with a zero byte in it")
        for part in path.split("/"):
            if is_wild(part) and not (parents and part == "**"):
                try:
                    segment(part)
                except PatternError as error:
                    raise ValueError(str(error)) from None
        return Source(origin, path, pivot)


__all__ = ["StageState"]
