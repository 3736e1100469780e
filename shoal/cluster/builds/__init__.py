"""Builds of images: a detached Ray actor on the head, which is started at the first build.

    actor.py     the actor, and how it is started
    builder.py   all builds: joins those that ask for the same, keeps the last ones that ended
    build.py     one build: which steps were done before, and the others in order
    steps.py     what a step does in a sandbox
    files.py     local files of callers, by the digest of their archive
    log.py       a build's log, for those who follow it

A build runs in ordinary sandboxes of the caller's environment and on the caller's behalf: one for each step that
changes files, made of the image of the step before. After it, the sandbox's filesystem is saved under the step's key.
The builder keeps nothing that must not be lost: if it is killed, its sandboxes end by their owner lease, and whoever
asks again goes on after the last saved step.
"""
