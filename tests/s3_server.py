"""A real S3 server on this host: moto's, in a process of its own."""

import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["S3Server"]

_numbers = itertools.count()

_SERVE = """
from moto.server import ThreadedMotoServer
import time
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
time.sleep(3600)
"""


class S3Server:
    """Use it as a context manager. ``environment`` is what clients need to find it."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __enter__(self) -> "S3Server":
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _SERVE],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        port = self.process.stdout.readline().strip()
        assert port, self.log.read_text()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        return self

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )

    def bucket(self) -> str:
        """Create a bucket and return its name."""
        name = f"bucket-{next(_numbers)}"
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client().create_bucket(Bucket=name)
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return name

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
