"""Virtual machines for the tests and for whoever develops ckpt, by QEMU alone: ``vagrant/lab`` is its command.

``image`` makes disks and kernels and keeps them; ``seed`` is what tells one machine from another; ``machine`` is one
QEMU; ``keeper`` is the process all of them live below; ``lab`` asks it, and ``cli`` is what is typed. It runs on the
system's own Python, before anything is set up, so it imports nothing but the standard library, and nothing of ckpt.
"""
