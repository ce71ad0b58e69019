"""How artifacts are run that need numpy and a runtime only: alike by the engines here and by the runner on a device.

A file is sent to the device as it is, so it imports nothing of this package and is written for Python 3.9. ``PACKAGE``
is what it imports, ``PIP`` what pip installs for that, ``BESIDES`` (if there is one) what it imports besides.
``open(parts, threads)`` takes the artifact's files, as paths or as bytes, and the number of CPU threads (None: all
cores). It returns ``run`` (float32 images [N, C, H, W] to logits [N, K], perhaps in memory that the next call
overwrites), the shape (C, H, W), and facts of the runtime, at least its ``device``. Options of the engine follow by
name. It raises ValueError for what is no classifier, and whatever the runtime raises; an exception with a ``kind``
("missing", "device" or "usage") says what to do in its message.
"""
