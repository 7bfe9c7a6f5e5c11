"""What the manifest of a harvest says of a site."""

from typing import Any

import torch

from monolex.activations import outliers


def site_facts(d_in: int, dtype: str = "fp16") -> dict[str, Any]:
    """What a harvest says of a site of which 12 of 1,000 rows were left out."""
    norms = torch.cat([torch.linspace(5, 15, 988), torch.full((12,), 400.0)])
    limit = outliers.limit(norms, 10.0)
    facts = outliers.site_facts(norms, outliers.beyond(norms, limit), limit)
    return {"d_in": d_in, "dtype": dtype, "chosen": True, "peak": 31.5, "widened": [], **facts}
