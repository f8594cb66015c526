"""The workers: a job is claimed, learned in a child process, stored and handed in.

::

    app           the Celery application
    wakeups       how others wake the workers
    tasks         what Celery runs, and the worker's two processes
    bench         one worker's place: its connections and a child in waiting
    attempt       one attempt at one job
    gathering     which waiting jobs go with it in one launch
    group         several attempts that share a child
    keeper        holds the lease, carries progress, hears orders
    child         the parent's end of the child
    encode_child  the child: the only one that meets the picture
    messages      what the two say to each other
    failures      codes of what went wrong
    presence      tells that this worker is there
    calibrator    measures, while there is no job, how fast it encodes
    flags         a few bytes that the worker's processes share
    light         the reaper and other rounds
    supervisor    everything at once, for one machine

Only ``encode_child`` loads torch. What is started how: ``python -m worker encode|light``,
``python -m worker.supervisor``.
"""
