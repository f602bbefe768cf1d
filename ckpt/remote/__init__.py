"""Other hosts: the channel to a ckpt there, the messages that pass, and the two kinds of host that a command can mean.

`protocol` carries messages over any two descriptors, `messages` says which there are, `ssh` starts the agent on the
other side, `agent` is what runs there, and `host` makes this host and another one look alike.
"""
