"""Run by `helm test` in the operator's image: through the Service, a replica is ready and exports its metrics."""

import os
import sys
import time
import urllib.request

url = os.environ["URL"]
deadline = time.monotonic() + 60


def get(path):
    """The text at a path, once the Service answers with 200."""
    while True:
        try:
            with urllib.request.urlopen(url + path, timeout=5) as answer:
                return answer.read().decode()
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"{url}{path}: {error}; look at the logs of the operator's pods")
            time.sleep(2)


get("/readyz")
if "\nmodelpress_leader " not in get("/metrics"):
    sys.exit(f"{url}/metrics: lacks modelpress_leader; is this the operator?")
print(f"{url}: ready, with metrics")
