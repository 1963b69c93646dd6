"""Peaks of GPUs, by the names that torch gives them."""

import pytest
import torch

from asymgrpo_app.update import peak_flops as module
from asymgrpo_app.update.peak_flops import known_peak, peak_flops

# TFLOP/s without sparsity, as in the data sheets.
BFLOAT16 = {
    "NVIDIA GB200": 2500,
    "NVIDIA B200": 2250,
    "NVIDIA H200": 989.4,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA GH200 480GB": 989.4,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A10": 125,
    "NVIDIA A10G": 70,
    "NVIDIA L40S": 362,
    "NVIDIA L40": 181,
    "NVIDIA L4": 121,
    "NVIDIA RTX 6000 Ada Generation": 364.2,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA GeForce RTX 4090": 165.2,
}


@pytest.mark.parametrize(("name", "tera"), BFLOAT16.items())
def test_a_gpu_is_known_by_its_name(name, tera):
    assert known_peak(name, torch.bfloat16) == known_peak(name, torch.float16) == tera * 1e12


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "Tesla T4", "A1000"]
)
def test_a_gpu_of_a_similar_name_is_another(name):
    assert known_peak(name, torch.bfloat16) is None


def test_others_and_other_types_are_lightnings(monkeypatch):
    monkeypatch.setattr(module, "get_available_flops", lambda device, dtype: 7)
    names = iter(
        ["Tesla V100-SXM2-16GB", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 NVL", "NVIDIA A100-SXM4-80GB MIG 3g.40gb"]
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: next(names))
    device = torch.device("cuda")
    found = [peak_flops(device, dtype) for dtype in (torch.float16, torch.float32, torch.float32, torch.bfloat16)]
    assert found == [7, 7, 60e12, None]
