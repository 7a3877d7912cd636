"""What schemathesis cannot read from openapi.yaml."""

import schemathesis

# What there is when `postamt dev` has started, or what a sequence may have made.
KNOWN = {
    "topic": ["my-topic", "test.voucher"],
    "partition": [0, 1, 2],
    "group": ["shop"],
    "instance": ["shop-1"],
}


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Lets most right requests be for what there is: names by chance all end as 404."""
    for name, values in KNOWN.items():
        value = (path_parameters or {}).get(name)
        if isinstance(value, str) and value.isalnum() or isinstance(value, int) and value >= 0:
            path_parameters[name] = values[len(str(value)) % len(values)]
    return path_parameters


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


@schemathesis.hook
def before_call(context, case, kwargs):
    """Keeps the instance that ./scripts/test has made."""
    if case.method == "DELETE" and (case.path_parameters or {}).get("instance") == "shop-1" and case.path.endswith("}"):
        case.path_parameters["instance"] = "another"
