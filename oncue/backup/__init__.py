"""Backups of a data folder, made while the server runs, and their way back.

    backup.json        manifest: what belongs to the newest complete backup
    log.db             copy of the embedded log; each backup adds what is new, in one transaction
    files-<n>/         keys, secrets, settings, states of triggers and stateful rules
    blobs/ab/abcd…     large payloads and functions, named by their hash

States are copied before the log, blobs before its copy is committed: the log then has all records
that the states know of, and the store has all blobs that the log names, also after a kill.
"""
