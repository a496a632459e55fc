"""Run by `helm test` in the operator's image: through the Service, a replica exports its metrics and has watches."""

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


heard = "\nmodelpress_watch_last_activity_timestamp_seconds{"
while heard not in (text := get("/metrics")):  # a Service sends only to replicas that are ready
    if "\nmodelpress_leader " not in text or time.monotonic() > deadline:
        sys.exit(f"{url}/metrics: lacks modelpress_leader or watches; is this the operator?")
    time.sleep(2)
print(f"{url}: ready, with metrics")
