"""What a kernel's name says, and how the time of many is summed up."""

import importlib.util
import sys
from pathlib import Path

import pytest

path = Path(__file__).parents[3] / "benchmarks" / "gpu_time.py"
spec = importlib.util.spec_from_file_location("gpu_time", path)
assert spec is not None
assert spec.loader is not None
gpu_time = importlib.util.module_from_spec(spec)
sys.modules["gpu_time"] = gpu_time  # where dataclasses look for it
spec.loader.exec_module(gpu_time)

NAMES = {
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off": "gemm",
    "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT": "gemm",
    "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>(Params)": "gemm",
    "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_nn": "gemm",
    "void gemv2T_kernel_val<int, int, float, float, float, float, 128, 16, 4, 4, false>": "gemm",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float>": "gemm",
    "sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64": "convolution",
    "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16_128x64_32x6>": "convolution",
    "sm90_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc": "convolution",
    "void implicit_convolve_sgemm<float, float, 1024, 5, 5, 3, 3, 3, 1, true, false, true>": "convolution",
    "void cudnn::cnn::conv2d_grouped_direct_kernel<false, true, false, false, 0, 0, int>": "convolution",
    "void at::native::(anonymous namespace)::conv_depthwise2d_forward_kernel<3, float>": "convolution",
    "void GRU_elementWise_fp<__half, __half, float, (cudnnRNNBiasMode_t)2>": "recurrence",
    "void LSTM_elementWise_bp1<float, float, float>": "recurrence",
    "void RNN_blockPersist_fp_GRU<__half, __half, float, 320>": "recurrence",
    "void persistRNN_fp<__nv_bfloat16, 512>(int)": "recurrence",
    "Memcpy HtoD (Pinned -> Device)": "copy",
    "Memset (Device)": "copy",
    "void cudnn::engines_precompiled::nchwToNhwcKernel<__half, __half, float, false, true>": "other",
    "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<AddFunctor>>": "other",
    "void at::native::vectorized_elementwise_kernel<4, at::native::(anonymous namespace)::convert_to>": "other",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, sum_functor>>": "other",
    "_alphas": "other",
}


@pytest.mark.parametrize("name", NAMES)
def test_kind_of_a_kernel(name: str) -> None:
    assert gpu_time.kind_of(name) == NAMES[name]


def test_overlapping_kernels_count_once_as_busy_time() -> None:
    kernels = [gpu_time.Kernel("x", start, 2.0) for start in (5.0, 0.0, 1.0, 1.5)]
    assert gpu_time.busy_seconds(kernels) == pytest.approx(5.5)
    assert gpu_time.busy_seconds([]) == 0


def test_summary() -> None:
    names = ["nvjet", "wgrad", "GRU", "add", "add", "mul", "Memset (Device)", "exp"]
    seconds = [4.0, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 0.5]
    kernels = [gpu_time.Kernel(name, 10.0 * i, s) for i, (name, s) in enumerate(zip(names, seconds, strict=True))]
    found = gpu_time.summary(kernels, steps=2, step_seconds=10.0)
    assert found["device_time_shares"] == pytest.approx(
        {"gemm": 0.4, "convolution": 0.1, "recurrence": 0.1, "copy": 0.1, "other": 0.3}
    )
    assert found["products_share"] == pytest.approx(0.6)
    assert [row["kernel"] for row in found["largest_others"]] == ["add", "Memset (Device)", "mul"]
    assert found["largest_others"][0] == {"kernel": "add", "share": pytest.approx(0.2), "calls_per_step": 1.0}
    assert found["kernels_per_step"] == 4
    assert found["idle_share"] == pytest.approx(0.5)
