"""The main job: Python, a pipeline and a compiler in a sandbox, with limits, usage and clean-up."""

import shutil
import sys

from sandboxlib import Limits, Outcome, Sandbox

C = '#include <stdio.h>\nint main(void) { puts("compiled inside"); return 0; }\n'

with Sandbox(memory="256M", pids=64) as sb:
    # Python: the interpreter that runs this file, with what it can import.
    done = sb.run([sys.executable, "-c", "print(6 * 7)"], timeout=30, text=True, check=True)
    print(f"python said {done.stdout.strip()} and took {done.usage.wall:.3f} s")

    # A shell pipeline, only when asked for by name.
    done = sb.sh("printf 'pear\\napple\\npear\\n' | sort | uniq -c | sort -rn", text=True, check=True)
    print(f"the pipeline counted {done.stdout.split()}")

    # A compiler, where the host has one; what it writes stays in here.
    if shutil.which("cc"):
        sb.files.write("/work/hello.c", C)
        sb.run(["cc", "-o", "hello", "hello.c"], timeout=60, check=True)
        print(f"the program was {sb.run(['./hello'], text=True, check=True).stdout.strip()}")

    # A limit is policy: no exception, the outcome says it.
    done = sb.run([sys.executable, "-c", "bytearray(1 << 29)"], limits=Limits(memory="64M", wall_time=30))
    print(f"a memory bomb ended as {done.outcome}, at {done.usage.memory_peak} bytes")
    assert done.outcome is Outcome.OUT_OF_MEMORY

    # Nothing of the host can be reached from inside.
    done = sb.sh("cat /etc/shadow; ls /home; touch /usr/x", text=True)
    print(f"reading secrets failed with status {done.returncode}")
    for change in sb.changes()[:3]:
        print(f"{change.kind} {change.path}")

print("and nothing is left")
