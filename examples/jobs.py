"""A job that outlives the connection, watched by its events: python examples/jobs.py "a red fox" fox.png"""

import json
import os
import sys
from pathlib import Path

import httpx

prompt, path = sys.argv[1:3]
headers = {"Authorization": f"Bearer {os.environ['ZIMAGE_KEY']}"} if "ZIMAGE_KEY" in os.environ else {}
url = os.environ.get("ZIMAGE_URL", "http://127.0.0.1:8000")

with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
    job = client.post("/v1/jobs", json={"prompt": prompt, "seed": 1}).raise_for_status().json()
    print(f"{job['id']} {job['status']}")
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as events:  # ends with the job
        for line in events.iter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                job |= event["data"]
                print(event["type"], job["progress"])
    if job["status"] != "succeeded":
        sys.exit(f"{job['status']}: {job['error']}")
    Path(path).write_bytes(client.get(job["result"]["images"][0]["url"]).content)
