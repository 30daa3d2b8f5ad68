"""Access lists and limits in the shipped sandbox, which must permit getpeername(2).

It uses the configuration file and the journal.
"""

from checks import CONFIG, SERVICE, echoes, last_account
from machine import eventually, expect


def access_lists_and_limits_apply(machine, _packages):
    """A denied address is refused and another is served; a source cannot exceed its limit."""
    machine.run(f"cp -p {CONFIG} /var/tmp/shipped.toml")
    machine.run(f"""sed -i 's/^deny = .*/deny = ["127.0.0.1"]/' {CONFIG}""")
    machine.run(
        f"""sed -i 's/^max-connections-per-source = .*/max-connections-per-source = 1/' {CONFIG}"""
    )
    machine.run(f"systemctl restart {SERVICE}")
    refused = machine.traffic("echo", "--address", "127.0.0.1", "--bytes", 1)
    expect(not refused["exact"] and not refused["refused"], f"127.0.0.1 is denied: {refused}")
    echoes(machine, ("::1",))
    held = machine.traffic("hold", "--address", "::1", "--connections", 3)
    expect(held["served"] == 1, f"a source that may have one connection: {held}")
    for words in ("refused by [access]", "had reached limits.max-connections-per-source"):
        eventually(
            lambda words=words: any(words in text for text in machine.messages()),
            15,
            f"the journal does not say: {words}",
        )
    machine.run(f"mv /var/tmp/shipped.toml {CONFIG} && systemctl restart {SERVICE}")
    account = last_account(machine)
    expect(account["refused"] >= 3, f"1 and 2 were refused: {account}")
    echoes(machine)
    return f"{account['refused']} refused, with reasons"
