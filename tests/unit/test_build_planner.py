"""What each instruction of a Dockerfile means where it stands."""

from __future__ import annotations

import copy
import pickle

import pytest
from builds import graph, image, last

from sandboxlib.build.graph import Stage, Step
from sandboxlib.build.operations import (
    Copy,
    FromContext,
    FromGit,
    FromImage,
    FromStage,
    FromText,
    FromUrl,
    Mount,
    Nothing,
    Run,
    Source,
    Workdir,
)
from sandboxlib.errors import DockerfileError
from sandboxlib.image.model import Health


def run(text: str, **request: object) -> Run:
    """The last RUN."""
    found = [step.op for step in last(text, **request).steps if isinstance(step.op, Run)]  # type: ignore[arg-type]
    return found[-1]


def copied(text: str) -> Copy:
    """The last COPY or ADD."""
    found = [step.op for step in last(text).steps if isinstance(step.op, Copy)]
    return found[-1]


def env(text: str, **request: object) -> dict[str, str]:
    return dict(run(text, **request).env)


def refused(text: str, line: int, message: str, **request: object) -> None:
    with pytest.raises(DockerfileError, match=message) as caught:
        graph(text, **request)  # type: ignore[arg-type]
    assert caught.value.line == line


# ---- arguments and variables -------------------------------------------------------------------


def test_an_argument_before_from_is_for_from_alone() -> None:
    text = "ARG V=1\nFROM base:$V\nRUN x\n"
    assert last(text).base == FromImage("base:1", "linux/amd64", "sha256:base:1")
    assert "V" not in env(text)
    assert env("ARG V=1\nFROM base:$V\nARG V\nRUN x\n")["V"] == "1"
    assert env("ARG V=1\nFROM base:$V\nARG V=2\nRUN x\n")["V"] == "2"
    assert env("ARG V=1\nFROM base:$V\nARG V\nRUN x\n", args={"V": "3"})["V"] == "3"


def test_an_argument_counts_from_where_it_stands() -> None:
    text = "FROM a\nUSER ${u:-before}\nRUN x\nARG u\nUSER $u\nRUN y\n"
    found = last(text, args={"u": "after"})
    runs = [step.op for step in found.steps if isinstance(step.op, Run)]
    assert [each.user for each in runs] == ["before", "after"]
    assert [dict(each.env).get("u") for each in runs] == [None, "after"]


def test_an_argument_that_nobody_declares_is_none() -> None:
    assert "X" not in env("FROM a\nRUN x", args={"X": "1"})


def test_what_env_says_wins_over_arg_wherever_it_stands() -> None:
    assert env("FROM a\nARG V=1\nENV V=2\nRUN x", args={"V": "3"})["V"] == "2"
    assert env("FROM a\nENV V=2\nARG V=1\nRUN x", args={"V": "3"})["V"] == "2"
    assert env("FROM a\nARG V\nENV V=${V:-none}\nRUN x", args={"V": "3"})["V"] == "3"
    assert env("FROM a\nARG V\nENV V=${V:-none}\nRUN x")["V"] == "none"


def test_an_instruction_sees_variables_as_they_were_before_it() -> None:
    assert env("FROM a\nENV abc=hello\nENV abc=bye def=$abc\nENV ghi=$abc\nRUN x") == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "abc": "bye",
        "def": "hello",
        "ghi": "bye",
    }
    # ARG takes its names one after the other.
    assert env("FROM a\nARG x=1 y=$x\nRUN z")["y"] == "1"


def test_arguments_go_to_stages_that_begin_with_this_one_and_to_no_other() -> None:
    text = "FROM a AS one\nARG V=1\nFROM one AS two\nRUN x\n"
    assert env(text)["V"] == "1"
    assert "V" not in env("FROM a AS one\nARG V=1\nFROM a AS two\nRUN x\n")


def test_the_platform_is_an_argument_where_it_is_asked_for() -> None:
    text = "FROM --platform=$BUILDPLATFORM a\nARG TARGETARCH TARGETPLATFORM TARGETVARIANT\nRUN x"
    found = env(text, platform="linux/arm/v7")
    assert (found["TARGETPLATFORM"], found["TARGETARCH"], found["TARGETVARIANT"]) == (
        "linux/arm/v7",
        "arm",
        "v7",
    )
    assert last(text, platform="linux/arm/v7").platform in {"linux/amd64", "linux/arm64"}
    assert "TARGETARCH" not in env("FROM a\nRUN x")


def test_proxies_are_there_without_being_declared_and_leave_no_trace() -> None:
    found = last("FROM a\nRUN x", args={"HTTP_PROXY": "http://user:pass@proxy"})
    op = found.steps[0].op
    assert isinstance(op, Run)
    assert op.proxies == (("HTTP_PROXY", "http://user:pass@proxy"),)
    assert "HTTP_PROXY" not in dict(op.env)
    assert "pass" not in found.steps[0].created_by
    declared = last("FROM a\nARG HTTP_PROXY\nRUN x", args={"HTTP_PROXY": "p"}).steps[1]
    assert isinstance(declared.op, Run)
    assert (declared.op.proxies, dict(declared.op.env)["HTTP_PROXY"]) == ((), "p")
    assert declared.created_by == "RUN |1 HTTP_PROXY=p /bin/sh -c x # buildkit"


def test_what_is_not_set_is_warned_of() -> None:
    found = graph("FROM a\nENV x=$nothing y=${nothing:-1}\nCOPY a$other /d\n").warnings
    assert [(each.rule, each.line, each.text) for each in found] == [
        ("UndefinedVar", 2, "$nothing is not set"),
        ("UndefinedVar", 3, "$other is not set"),
    ]


def test_a_secret_in_an_argument_is_warned_of() -> None:
    rules = [each.rule for each in graph("FROM a\nARG DB_PASSWORD\nENV PUBLIC_KEY=1 API_TOKEN=2\n").warnings]
    assert rules == ["SecretsUsedInArgOrEnv", "SecretsUsedInArgOrEnv"]


# ---- stages ------------------------------------------------------------------------------------

STAGES = """\
FROM a AS one
RUN 1
FROM b AS two
RUN 2
FROM one AS three
COPY --from=0 /x /x
COPY --from=two /y /y
FROM c AS four
RUN --mount=from=three,target=/t 4
"""


def test_only_stages_that_are_needed_are_there() -> None:
    assert [stage.name for stage in graph(STAGES).stages] == ["one", "two", "three", "four"]
    assert [stage.name for stage in graph(STAGES, target="three").stages] == ["one", "two", "three"]
    assert [stage.name for stage in graph(STAGES, target="TWO").stages] == ["two"]
    assert [stage.name for stage in graph(STAGES, target="0").stages] == ["one"]


def test_a_stage_knows_which_others_it_needs() -> None:
    assert [sorted(stage.needs) for stage in graph(STAGES).stages] == [[], [], [0, 1], [2]]


def test_names_of_stages_are_of_any_case_and_the_last_one_counts() -> None:
    found = last("FROM a AS One\nFROM b AS one\nFROM ONE\nCOPY --from=oNe x y\n")
    assert found.base == FromStage(1, "one")
    assert found.steps[0].op == Copy(sources=(Source(FromStage(1, "one"), "x"),), destination="/y")


def test_what_is_no_stage_is_an_image() -> None:
    found = copied("FROM a\nCOPY --from=nginx:1 /x /y\n")
    assert found.sources[0].origin == FromImage("nginx:1", "linux/amd64")


def test_contexts_take_the_place_of_stages_and_images() -> None:
    text = "FROM a AS one\nRUN x\nFROM b\nCOPY --from=one x y\nCOPY --from=c x y\n"
    found = last(text, contexts=frozenset({"one", "c"}))
    assert [op.sources[0].origin for op in (step.op for step in found.steps) if isinstance(op, Copy)] == [
        FromContext("one"),
        FromContext("c"),
    ]
    assert last("FROM b\n", contexts=frozenset({"b"})).base == FromContext("b")
    assert last("FROM b\n", images={"b": "other:2"}).base == FromImage(
        "other:2", "linux/amd64", "sha256:other:2"
    )
    begun = graph("FROM a AS one\nRUN x\nFROM one\nRUN y\n", contexts=frozenset({"one"}))
    assert [(stage.base, len(stage.steps)) for stage in begun.stages] == [
        (FromContext("one"), 0),
        (FromStage(0, "one"), 1),
    ]


def test_a_stage_inherits_what_its_base_says() -> None:
    base = image(
        env=("PATH=/bin", "A=1"),
        cmd=("sh",),
        user="u",
        working_dir="/w",
        labels={"a": "b"},
        entrypoint=("e",),
    )
    found = last("FROM a AS one\nENV B=2\nFROM one\nWORKDIR x\nRUN y\n", {"a": base})
    assert found.config.env == ("PATH=/bin", "A=1", "B=2")
    assert (found.config.cmd, found.config.user, found.config.working_dir) == (("sh",), "u", "/w/x")
    op = found.steps[1].op
    assert isinstance(op, Run)
    assert (op.user, op.cwd) == ("u", "/w/x")


def test_scratch_has_nothing_but_a_path() -> None:
    found = last("FROM scratch\nCOPY a /\n")
    assert found.base == Nothing()
    assert found.config.env == ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)


@pytest.mark.parametrize(
    "text, line, message",
    [
        ("", 0, "no FROM"),
        ("ARG x", 0, "no FROM"),
        ("RUN x\nFROM a", 1, "before the first FROM"),
        ("FROM", 1, "FROM is followed by"),
        ("FROM a b", 1, "FROM is followed by"),
        ("FROM a AS 1x", 1, "no name of a stage"),
        ("FROM a AS scratch", 1, "no name of a stage"),
        ("FROM ${none}", 1, "has no name"),
        ("FROM UPPER", 1, "lower-case"),
        ("FROM --platform=x a", 1, "platform"),
        ("FROM --plat=x a", 1, "did you mean --platform"),
        ("FROM a\nCOPY --from=b", 2, "needs a source"),
        ("FROM a\nCOPY --from=1 x y", 2, "no stage 1"),
        ("FROM a AS me\nCOPY --from=me x y", 2, "has to stand before"),
        ("FROM a\nCOPY --from=later x y\nFROM b AS later", 2, "has to stand before"),
        ("FROM a\nCOPY --from=$x x y", 2, "--from takes no variable"),
        ("FROM a\nCOPY --from=B@d x y", 2, "digest"),
        ("FROM a\nRUN --mount=from=$x,target=/t y", 2, "from= takes no variable"),
    ],
)
def test_stages_that_make_no_sense_are_refused(text: str, line: int, message: str) -> None:
    if not text.strip():
        with pytest.raises(DockerfileError, match=message):
            graph(text)
    # What nobody needs is not looked at, so it is asked for.
    elif "later" in text:
        refused(text, line, message, target="0")
    else:
        refused(text, line, message)


def test_a_target_that_is_not_there_is_refused() -> None:
    refused("FROM a AS builder\n", 0, "did you mean builder", target="bulider")
    refused("FROM a\n", 0, "there are none with a name", target="x")


# ---- ONBUILD -----------------------------------------------------------------------------------


def test_triggers_are_kept_for_later_and_do_nothing_now() -> None:
    found = last("FROM a\nONBUILD RUN x\nONBUILD COPY <<E /y\nz\nE\n")
    assert found.steps == ()
    assert found.config.on_build == ("RUN x", "COPY <<E /y\nz\nE")


def test_what_a_base_triggers_comes_first_and_goes_no_further() -> None:
    found = last("FROM a\nRUN own\n", {"a": image(on_build=("ENV A=1", "RUN first"))})
    assert [step.text for step in found.steps] == ["ENV A=1", "RUN first", "RUN own"]
    assert {step.line for step in found.steps[:2]} == {1}
    assert found.config.on_build is None


def test_a_stage_that_begins_with_one_that_has_triggers_carries_them_out() -> None:
    found = graph("FROM a AS one\nONBUILD RUN x\nFROM one AS two\nFROM two\n")
    assert [[step.text for step in stage.steps] for stage in found.stages] == [[], ["RUN x"], []]


def test_a_trigger_may_need_another_stage_or_image() -> None:
    bases = {"a": image(on_build=("COPY --from=tools /x /x", "RUN --mount=from=other,target=/o y"))}
    found = graph("FROM t AS tools\nFROM a\n", bases)
    assert [stage.name for stage in found.stages] == ["tools", "stage-1"]
    assert FromImage("other", "linux/amd64") in found.images


@pytest.mark.parametrize("trigger", ["FROM x", "MAINTAINER x", "RUN x\nRUN y", "", "ONBUILD RUN x", "NO x"])
def test_triggers_of_a_base_that_cannot_be_are_refused(trigger: str) -> None:
    with pytest.raises(DockerfileError, match="its base triggers") as caught:
        graph("FROM scratch AS x\nFROM a\n", {"a": image(on_build=(trigger,))})
    assert caught.value.line == 2


def test_a_chain_of_triggers_has_an_end() -> None:
    with pytest.raises(DockerfileError, match="more than 1000"):
        graph("FROM a\n", {"a": image(on_build=("RUN x",) * 5000)})


@pytest.mark.parametrize("text", ["ONBUILD MAINTAINER x", "ONBUILD FROM x"])
def test_what_cannot_be_triggered_is_refused(text: str) -> None:
    refused(f"FROM a\n{text}\n", 2, "ONBUILD cannot trigger")


# ---- the configuration -------------------------------------------------------------------------


def config(text: str, base: object = None) -> object:
    return last(f"FROM a\n{text}\n", {"a": base} if base is not None else None).config  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "text, field, want, created_by",
    [
        ('CMD ["a", "b c"]', "cmd", ("a", "b c"), 'CMD ["a" "b c"]'),
        ("CMD a b", "cmd", ("/bin/sh", "-c", "a b"), 'CMD ["/bin/sh" "-c" "a b"]'),
        ("CMD []", "cmd", (), "CMD []"),
        ('ENTRYPOINT ["e"]', "entrypoint", ("e",), 'ENTRYPOINT ["e"]'),
        ("USER u:g", "user", "u:g", "USER u:g"),
        ("EXPOSE 80 53/UDP 8000-8002", "exposed_ports",
         {"53/udp": {}, "80/tcp": {}, "8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}},
         "EXPOSE [53/udp 80/tcp 8000/tcp 8001/tcp 8002/tcp]"),
        ("VOLUME /a /b", "volumes", {"/a": {}, "/b": {}}, "VOLUME [/a /b]"),
        ('VOLUME ["/a b"]', "volumes", {"/a b": {}}, "VOLUME [/a b]"),
        ('LABEL a=b "c d"="e f"', "labels", {"a": "b", "c d": "e f"}, "LABEL a=b c d=e f"),
        ("STOPSIGNAL SIGRTMIN+3", "stop_signal", "SIGRTMIN+3", "STOPSIGNAL SIGRTMIN+3"),
        ("STOPSIGNAL 9", "stop_signal", "9", "STOPSIGNAL 9"),
        ('SHELL ["/bin/bash", "-c"]', "shell", ("/bin/bash", "-c"), "SHELL [/bin/bash -c]"),
        ("WORKDIR /a/../b//c/", "working_dir", "/b/c", "WORKDIR /b/c"),
        ("HEALTHCHECK NONE", "healthcheck", Health(("NONE",)),
         "HEALTHCHECK {Test:[NONE] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}"),
        ("HEALTHCHECK --interval=1s --retries=4 CMD a",
         "healthcheck",
         Health(("CMD-SHELL", "a"), 10**9, retries=4),
         "HEALTHCHECK {Test:[CMD-SHELL a] Interval:1s Timeout:0s StartPeriod:0s StartInterval:0s Retries:4}"),
        ('HEALTHCHECK CMD ["a"]', "healthcheck", Health(("CMD", "a")),
         "HEALTHCHECK {Test:[CMD a] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}"),
    ],
)  # fmt: skip
def test_what_an_instruction_sets(text: str, field: str, want: object, created_by: str) -> None:
    found = last(f"FROM a\n{text}\n")
    assert getattr(found.config, field) == want
    assert found.steps[0].created_by == created_by


def test_names_are_replaced_and_others_are_added() -> None:
    base = image(
        labels={"a": "1", "b": "2"}, volumes={"/v": {}}, exposed_ports={"80/tcp": {}}, env=("A=1", "B=2")
    )
    found = last("FROM a\nLABEL b=3 c=4\nVOLUME /w\nEXPOSE 81\nENV A=3 C=4\n", {"a": base}).config
    assert found.labels == {"a": "1", "b": "3", "c": "4"}
    assert (found.volumes, found.exposed_ports) == ({"/v": {}, "/w": {}}, {"80/tcp": {}, "81/tcp": {}})
    assert found.env is not None
    assert found.env[:2] == ("A=3", "B=2")
    assert found.env[-1] == "C=4"


def test_an_entrypoint_takes_the_command_of_its_base_away_but_not_its_own() -> None:
    base = image(cmd=("base",))
    assert last('FROM a\nENTRYPOINT ["e"]\n', {"a": base}).config.cmd is None
    assert last('FROM a\nCMD ["c"]\nENTRYPOINT ["e"]\n', {"a": base}).config.cmd == ("c",)
    assert last('FROM a\nENTRYPOINT ["e"]\nCMD ["c"]\n', {"a": base}).config.cmd == ("c",)


def test_another_shell_counts_from_where_it_is_set() -> None:
    found = last('FROM a\nRUN x\nSHELL ["bash", "-ec"]\nRUN y\nCMD z\nRUN ["w"]\n')
    assert [step.op.argv for step in found.steps if isinstance(step.op, Run)] == [
        ("/bin/sh", "-c", "x"),
        ("bash", "-ec", "y"),
        ("w",),
    ]
    assert found.config.cmd == ("bash", "-ec", "z")


def test_labels_that_are_asked_for_are_the_image_s_alone() -> None:
    found = graph("FROM a AS one\nLABEL a=1\nFROM one\n", labels={"a": "2", "b": "3"})
    assert [stage.config.labels for stage in found.stages] == [{"a": "1"}, {"a": "2", "b": "3"}]


def test_who_made_it() -> None:
    found = last("FROM a\nMAINTAINER Ada <a@b>\n")
    assert (found.author, found.steps[0].created_by) == ("Ada <a@b>", "MAINTAINER Ada <a@b>")


@pytest.mark.parametrize(
    "text, message",
    [
        ("CMD --x a", "CMD has no flag --x: it has none"),
        ("ENV =1", "without a name"),
        ("ENV a\0=1", "zero byte"),
        ("LABEL", "needs a name"),
        ("USER", "one argument"),
        ("USER ${none}", "empty"),
        ("VOLUME", "needs paths"),
        ('VOLUME [""]', "none of them empty"),
        ("EXPOSE", "needs a port"),
        ("EXPOSE x", "no port"),
        ("EXPOSE 80/xyz", "protocol"),
        ("EXPOSE 90-80", "no port"),
        ("EXPOSE 70000", "no port"),
        ("STOPSIGNAL 0", "no signal"),
        ("STOPSIGNAL nonsense!", "no signal"),
        ("SHELL bash -c", "SHELL needs a list"),
        ("SHELL []", "SHELL needs a list"),
        ("WORKDIR", "one argument"),
        ("RUN", "needs a command"),
        ("RUN --mount=type=cache x", "needs a target"),
        ("RUN --network=wifi x", "--network is"),
        ("RUN --security=none x", "--security is"),
        ("RUN --netwrok=none x", "did you mean --network"),
        ("RUN --network=none --network=none x", "stands twice"),
        ("RUN --mount x", "needs a value"),
        ("HEALTHCHECK", "followed by CMD"),
        ("HEALTHCHECK x", "followed by CMD"),
        ("HEALTHCHECK CMD", "needs a command"),
        ("HEALTHCHECK NONE x", "NONE has neither"),
        ("HEALTHCHECK --interval=1 CMD x", "no length of time"),
        ("HEALTHCHECK --interval=1us CMD x", "at least 1ms"),
        ("HEALTHCHECK --retries=x CMD x", "whole number"),
        ("COPY a", "needs a source and a destination"),
        ("COPY --link=maybe a b", "true or false"),
        ("COPY --chmod=9 a b", "--chmod"),
        ("COPY --chown=:1 a b", "--chown"),
        ("COPY --chown=a: a b", "--chown"),
        ("COPY --chown=99999999999 a b", "beyond"),
        ("COPY --link --chown=user a b", "takes numbers"),
        ("COPY --checksum=x a b", "no flag --checksum"),
        ("COPY https://x/y /z", "ADD does"),
        ("COPY [a b", "bracket"),
        ("COPY '' b", "empty"),
        ("COPY a <<E\nE", "not the destination"),
        ("COPY --exclude=[ a b", "bracket"),
        ("ADD --checksum=sha256:1 https://x/y /z", "64 of the characters"),
        ("ADD --checksum=sha256:1 a /z", "one source that is a URL"),
        ("ADD https:///x /y", "no host"),
        ("ADD git@host:x.git#-x /y", "begins with '-'"),
        ("ADD --from=x a b", "no flag --from"),
    ],
)
def test_instructions_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(DockerfileError, match=message) as caught:
        graph(f"FROM a\n{text}\n")
    assert caught.value.line == 2


# ---- RUN ---------------------------------------------------------------------------------------


def test_a_document_alone_is_what_the_shell_runs() -> None:
    assert run("FROM a\nRUN <<EOF\nx\ny\nEOF\n").argv == ("/bin/sh", "-c", "x\ny\n")
    assert run("FROM a\nRUN <<-EOF\n\tx\n\tEOF\n").argv == ("/bin/sh", "-c", "x\n")


def test_a_document_with_an_interpreter_of_its_own_is_a_file() -> None:
    found = run("FROM a\nRUN <<EOF\n#!/usr/bin/python3\nprint()\nEOF\n")
    assert found.argv == ("/dev/pipes/EOF",)
    assert found.script == ("EOF", "#!/usr/bin/python3\nprint()\n")


def test_documents_for_a_command_are_read_by_the_shell() -> None:
    found = run("FROM a\nRUN cat <<A - <<-B\na\nA\n\tb\nB\n")
    assert found.argv == ("/bin/sh", "-c", "cat <<A - <<-B\na\nA\n\tb\nB")


def test_a_command_is_not_expanded_by_the_builder() -> None:
    assert run("FROM a\nENV A=1\nRUN echo $A ${B}\n").argv == ("/bin/sh", "-c", "echo $A ${B}")


MOUNTS = [
    ("target=/t", Mount(type="bind", target="/t", origin=FromContext(), readonly=True)),
    ("type=bind,src=a/../b,dst=t,rw", Mount(type="bind", target="/w/t", origin=FromContext(), source="b")),
    ("from=other,target=/t", Mount(
        type="bind", target="/t", origin=FromImage("other", "linux/amd64"), readonly=True)),
    ("type=cache,target=c", Mount(type="cache", target="/w/c", id="/w/c")),
    ("type=cache,id=q,target=/c,sharing=LOCKED,mode=0700,uid=1,gid=2,ro", Mount(
        type="cache", target="/c", id="q", sharing="locked", mode=0o700, uid=1, gid=2, readonly=True)),
    ("type=tmpfs,target=/t,size=64m", Mount(type="tmpfs", target="/t", size=64 << 20)),
    ("type=secret,id=s", Mount(type="secret", target="/run/secrets/s", id="s", readonly=True)),
    ("type=secret,target=/a/b", Mount(type="secret", target="/a/b", id="b", readonly=True)),
    ("type=secret,id=s,env=S", Mount(type="secret", id="s", env="S", readonly=True)),
    ("type=secret,id=s,env=S,target=/x,required", Mount(
        type="secret", id="s", env="S", target="/x", required=True, readonly=True)),
    ("type=ssh", Mount(type="ssh", id="default", readonly=True)),
    ("type=ssh,id=k,required=false,target=/a", Mount(type="ssh", id="k", target="/a", readonly=True)),
    ("'type=cache,\"target=/a,b\"'", Mount(type="cache", target="/a,b", id="/a,b")),
    ("type=$kind,target=/$kind", Mount(type="tmpfs", target="/tmpfs")),
]  # fmt: skip


@pytest.mark.parametrize("text, want", MOUNTS, ids=[text for text, _ in MOUNTS])
def test_mounts(text: str, want: Mount) -> None:
    assert run(f"FROM a\nENV kind=tmpfs\nWORKDIR /w\nRUN --mount={text} x\n").mounts == (want,)


@pytest.mark.parametrize(
    "text, message",
    [
        ("type=nfs,target=/x", "no type 'nfs'"),
        ("target=/", "over the root"),
        ("target=/a/..", "over the root"),
        ("typ=bind,target=/x", "did you mean type"),
        ("target=/x,source", "needs a value"),
        ("target=/x,target=/y", "twice"),
        ("target=/x,mode=0755", "has no mode"),
        ("type=tmpfs,target=/x,sharing=locked", "has no sharing"),
        ("type=cache,target=/x,sharing=none", "sharing is one of"),
        ("type=cache,target=/x,mode=9", "octal"),
        ("type=cache,target=/x,uid=-1", "uid is"),
        ("type=secret", "needs an id"),
        ("type=secret,id=a,source=b", "not by both"),
        ("type=secret,id=a,env=1x", "name of a variable"),
        ("type=secret,id=a,required=perhaps", "true or false"),
        ("type=tmpfs,target=/x,size=big", "size"),
        ("type=cache,readonly", "needs a target"),
        ("'type=cache,\"target'", "no list"),
    ],
)
def test_mounts_that_make_no_sense_are_refused(text: str, message: str) -> None:
    refused(f"FROM a\nRUN --mount={text} x\n", 2, message)


def test_two_mounts_at_one_place_are_refused() -> None:
    refused("FROM a\nRUN --mount=target=/x --mount=type=tmpfs,target=/x/ y\n", 2, "same target")


# ---- COPY and ADD ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, sources, destination",
    [
        ("COPY a b/ ./", ["a", "b"], "/w/"),
        ("COPY a .", ["a"], "/w/"),
        ("COPY a x", ["a"], "/w/x"),
        ("COPY a /x/", ["a"], "/x/"),
        ("COPY a /", ["a"], "/"),
        ("COPY ../../a /x", ["a"], "/x"),
        ("COPY / /x", [""], "/x"),
        ("COPY . /x", [""], "/x"),
        ("COPY /a/./b /x", ["a/b"], "/x"),
        ('COPY ["a b", "/x y"]', ["a b"], "/x y"),
        ("COPY *.py /x/", ["*.py"], "/x/"),
        ("COPY $A /$A/", ["v"], "/v/"),
        ("COPY a ../x", ["a"], "/x"),
        ("COPY a /x/..", ["a"], "/"),
    ],
)
def test_where_files_are_from_and_where_they_go(text: str, sources: list[str], destination: str) -> None:
    found = copied(f"FROM a\nENV A=v\nWORKDIR /w\n{text}\n")
    assert [source.path for source in found.sources] == sources
    assert found.destination == destination


def test_what_stands_in_the_dockerfile_may_be_a_file() -> None:
    found = copied("FROM a\nENV A=v\nCOPY <<E1 <<'E2' b /d/\n$A 'x'\nE1\n$A\nE2\n")
    assert found.sources == (
        Source(FromText("v 'x'\n"), "E1"),
        Source(FromText("$A\n"), "E2"),
        Source(FromContext(), "b"),
    )


@pytest.mark.parametrize(
    "path, want, pivot",
    [
        ("./x/a.txt", "x/a.txt", 0),
        ("/t/a/./b/c", "t/a/b/c", 4),
        ("./x/./y/*.txt", "x/y/*.txt", 2),
        ("/./x", "x", 0),
    ],
)
def test_the_folders_on_the_way_may_come_along(path: str, want: str, pivot: int) -> None:
    found = copied(f"FROM a\nCOPY --parents {path} /d/\n")
    assert found.sources == (Source(FromContext(), want, pivot),)


@pytest.mark.parametrize(
    "text, want",
    [
        ("https://host/a/b.tgz?x=1#f", Source(FromUrl("https://host/a/b.tgz?x=1#f"), "b.tgz")),
        ("https://host/", Source(FromUrl("https://host/"), "")),
        ("https://host/a%20b", Source(FromUrl("https://host/a%20b"), "a b")),
        ("https://host/x.git", Source(FromGit("https://host/x.git"), "")),
        ("https://host/x.git#v1:docs/../y", Source(FromGit("https://host/x.git", "v1", "y"), "")),
        ("git@host:u/x.git#main", Source(FromGit("git@host:u/x.git", "main"), "")),
        ("ssh://git@host/x", Source(FromGit("ssh://git@host/x"), "")),
    ],
)
def test_what_add_gets_from_the_network(text: str, want: Source) -> None:
    assert copied(f"FROM a\nADD {text} /d\n").sources == (want,)


def test_flags_of_copy_and_add() -> None:
    found = copied("FROM a\nARG m=640\nCOPY --link --chown=1:2 --chmod=$m --exclude=*.o --exclude=x a /b\n")
    assert (found.link, found.chown, found.chmod, found.exclude) == (True, "1:2", "640", ("*.o", "x"))
    found = copied("FROM a\nADD --unpack=false --keep-git-dir=true https://h/x.git /b\n")
    assert (found.unpack, found.sources[0].origin) == (False, FromGit("https://h/x.git", keep=True))
    assert copied(f"FROM a\nADD --checksum=sha256:{'0' * 64} http://h/x /b\n").sources[0].origin == FromUrl(
        "http://h/x", f"sha256:{'0' * 64}"
    )


def test_history_says_what_was_done() -> None:
    found = last("FROM a\nCOPY --chown=1:2 --chmod=+x a b /c/\nADD <<E x /d/\ny\nE\nRUN z\nARG q=1\nRUN w\n")
    assert [step.created_by for step in found.steps] == [
        "COPY --chown=1:2 --chmod=+x a b /c/ # buildkit",
        "ADD <<E x /d/ # buildkit",
        "RUN /bin/sh -c z # buildkit",
        "ARG q=1",
        "RUN |1 q=1 /bin/sh -c w # buildkit",
    ]


def test_a_folder_to_work_in_is_made_for_its_user() -> None:
    assert [step.op for step in last("FROM a\nWORKDIR /a\nUSER u\nWORKDIR b\nWORKDIR /\n").steps] == [
        Workdir(path="/a"),
        None,
        Workdir(path="/a/b", user="u"),
        None,
    ]


# ---- the graph ---------------------------------------------------------------------------------


def test_a_graph_prints_what_it_is_going_to_do() -> None:
    text = (
        "FROM a AS one\nWORKDIR /w\nRUN --mount=type=cache,target=/c --network=none make\n"
        "FROM scratch\nCOPY --link --from=one /w/x . /d/\nCOPY <<E /e\nxyz\nE\nCMD x\n"
    )
    assert str(graph(text)) == (
        "stage 0 one from a (linux/amd64): on linux/amd64\n"
        "    1 line 2    WORKDIR /w\n"
        "                 mkdir /w\n"
        "    2 line 3    RUN --mount=type=cache,target=/c --network=none make\n"
        "                 run /bin/sh -c make\n"
        "                     as root in /w, network none\n"
        "                     mount cache /c at /c\n"
        "stage 1 stage-1 from scratch: on linux/amd64, needs 0, the image\n"
        "    1 line 5    COPY --link --from=one /w/x . /d/\n"
        "                 copy stage one:/w/x to /d/ (linked)\n"
        "                 copy stage one:/ to /d/ (linked)\n"
        "    2 line 6    COPY <<E /e\n"
        "                 copy 4 characters of the Dockerfile to /e\n"
        "    3 line 9    CMD x"
    )


def test_a_graph_is_a_value() -> None:
    found = graph(STAGES)
    assert found == graph(STAGES)
    assert pickle.loads(pickle.dumps(found)) == found == copy.deepcopy(found)
    assert isinstance(found.stages[0], Stage)
    assert isinstance(found.stages[0].steps[0], Step)


def test_a_stage_has_a_bound() -> None:
    with pytest.raises(DockerfileError, match="more than 10000 steps"):
        graph("FROM a\n" + "ENV a=1\n" * 10_001)
