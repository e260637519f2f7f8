"""Read what a sandbox will do before it does it."""

from sandboxlib import Mount, Sandbox, Security

sandbox = Sandbox(
    hostname="reader",
    mounts=[Mount.tmpfs("/scratch", size="64M")],
    security=Security(user="1000:1000", rlimits={"nofile": 64}),
)
steps = list(sandbox.plan().lines())
print(f"{len(steps)} steps; what pid 1 of the sandbox does last, before it waits for its end:")
for _, call, why in [step for step in steps if step[0] == "init"][-4:]:
    print(f"{call}  # {why}")
