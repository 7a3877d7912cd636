"""What schemathesis cannot read from openapi.yaml."""

import json
import os
import re
import zlib

import schemathesis

# What there is when ./scripts/test has started `postamt dev`, and what is right for each.
KNOWN = {
    "cluster": (r"[a-zA-Z0-9_-]{1,99}", [os.environ["CLUSTER_ID"]]),
    "broker": (r"[0-9]{1,9}", [0]),
    "topic": (r"[a-zA-Z0-9._-]{1,249}", ["my-topic", "test.voucher"]),
    "partition": (r"[0-9]{1,9}", [0, 1, 2]),
    "group": (r"[^\x00-\x20/\x7f\ufffd]{1,249}", ["shop"]),
    "instance": (r"[^\x00-\x20/\x7f\ufffd]{1,249}", ["shop-1"]),
    "subscription": (r"[a-z0-9][a-z0-9-]{0,62}", ["webshop"]),
}


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Lets three of four right requests be for what there is: names by chance all end as 404."""
    for name, (right, known) in KNOWN.items():
        value = str((path_parameters or {}).get(name))
        chance = zlib.crc32(value.encode("utf-8", "replace"))
        if name in (path_parameters or {}) and re.fullmatch(right, value) and chance % 4:
            path_parameters[name] = known[chance % len(known)]
    return path_parameters


@schemathesis.hook
def before_call(context, case, kwargs):
    """Asks for the cluster that there is in place of the examples', and keeps the instance and the
    subscription that ./scripts/test has made."""
    if (case.path_parameters or {}).get("cluster") == "AAAA":
        case.path_parameters["cluster"] = os.environ["CLUSTER_ID"]
    if case.method == "DELETE" and case.path.endswith("/instances/{instance}") and case.path_parameters.get("instance") == "shop-1":
        case.path_parameters["instance"] = "another"
    if case.method == "DELETE" and case.path == "/subscriptions/{subscription}" and case.path_parameters.get("subscription") == "webshop":
        case.path_parameters["subscription"] = "another"


@schemathesis.serializer("application/x-ndjson")
def lines(context, value):
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace")


def integers(value):
    """Writes 3.0 as 3: JSON Schema calls both integers, and we take only the second."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [integers(v) for v in value]
    if isinstance(value, dict):
        return {k: integers(v) for k, v in value.items()}
    return value


@schemathesis.hook
def map_body(context, body):
    return integers(body)
