"""The app's parts: what a request asks, sessions on images, infer tasks, datastore, training and the server's routes.

MONAI Label unloads `scripts` and `lib` from Python's modules whenever it builds an app or a bundle task, and imports
them anew; classes would then exist twice and `isinstance` fail. One process serves one version of this code, so the
reloading is switched off before anything else of the app is imported.
"""

import os

os.environ["MONAI_LABEL_RELOAD_APP_LIB"] = "false"
