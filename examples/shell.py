"""A shell that one can attach to, leave with Ctrl-P Ctrl-Q, and come back to; what runs in it goes on."""

from sandboxlib import Sandbox

with Sandbox(hostname="inside") as sb, sb.popen(["sh"], tty=True) as shell:
    while shell.poll() is None:
        print("attached; Ctrl-P Ctrl-Q detaches, exit ends it")
        sb.attach(shell)
        if shell.returncode is None:
            print(f"\ndetached; {len(sb.processes())} processes go on inside")
            if input("Enter attaches again, q ends it: ") == "q":
                shell.kill()
    print(f"the shell has ended with status {shell.returncode}")
