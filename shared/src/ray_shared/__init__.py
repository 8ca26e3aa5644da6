"""What the projects share: configuration, clusters, storage, tracking, bundles and reports.

Importing this package switches Ray's token authentication on, because Ray reads the mode once,
when `ray` itself is imported. Import `ray_shared` before `ray`.
"""

import os

os.environ.setdefault("RAY_AUTH_MODE", "token")
