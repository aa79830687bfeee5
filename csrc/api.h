// The C ABI between Python and the kernels: plain structs, status codes, no torch, no allocation, no synchronisation.
//
// Every entry point takes one argument block and a CUDA stream. Status: 0 is success, a positive value is a cudaError_t,
// a negative one of ck_status. The structs are mirrored by cramkernels/cuda/arguments.py; CK_ABI guards the pair.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define CK_ABI 2
#define CK_API extern "C" __attribute__((visibility("default")))

enum ck_status { CK_BAD_DTYPE = -1, CK_BAD_SHAPE = -2 };

enum ck_dtype { CK_F32 = 0, CK_F16 = 1, CK_BF16 = 2 };

enum ck_norm_op { CK_LAYER_NORM = 0, CK_ADD_LAYER_NORM = 1, CK_LAYER_NORM_GELU = 2, CK_GELU_LAYER_NORM = 3 };

// One row operation over x [rows, width]; null where a tensor does not take part.
//
// Forward reads x, residual, parameters; writes y, new_residual, mean, rstd.
// Backward reads grad, grad_residual, x (the new residual for ADD_LAYER_NORM), mean, rstd, parameters; writes dx,
// dresidual and one partial row per CTA and parameter into partials [parameters][ctas][width], which ck_norm_reduce sums.
struct ck_norm_args {
    const void *x, *residual, *weight, *bias, *linear_bias, *grad, *grad_residual;
    const int64_t *seed;
    void *y, *new_residual, *dx, *dresidual;
    float *mean, *rstd, *partials;
    int64_t rows;
    int32_t width, op, dtype, residual_dtype, parameter_dtype, tanh, ctas, reserved;
    float eps, keep_scale;
    uint32_t drop_threshold, padding;
};

// x [rows, 2 * width] -> y [rows, width]; gate_first: the first half goes through the GELU.
// Backward writes dx [rows, 2 * width] and, with a bias, partials [1][ctas][2 * width].
struct ck_geglu_args {
    const void *x, *bias, *grad;
    void *y, *dx;
    float *partials;
    int64_t rows;
    int32_t width, dtype, parameter_dtype, tanh, gate_first, ctas;
};

// Sums partials [count][ctas][width] over the CTAs, in their order, into out[i] [width].
struct ck_reduce_args {
    const float *partials;
    void *out[3];
    int32_t count, ctas, width, dtype;
};

// Attention over packed sequences: qkv [tokens, 3, heads, head_dim], contiguous and aligned to 16 bytes, out
// [tokens, heads, head_dim], lse [heads, tokens]; sequence b is tokens cu_seqlens[b] to cu_seqlens[b + 1].
// cos, sin [.., head_dim / 2] rotate queries and keys, null: no rotation. key_mask [tokens]: keys that may be seen, null:
// all. window: -1 for none. The short kernels are for sequences of at most 128 tokens and 16-bit types; the forward takes
// `warps` a CTA, up to 8, and the backward reads qkv, grad and lse. The mid backward is for sequences of at most 512
// tokens, 16-bit types and head_dim up to 64, from sm_80 on. The long kernels are for any length and 16-bit types, the fp32
// ones for any length and fp32; their backwards leave rowsum(grad * out) in delta [heads, tokens], and read out, as does
// the mid one.
struct ck_attention_args {
    const void *qkv, *grad;
    const float *cos, *sin;
    const int32_t *cu_seqlens;
    const uint8_t *key_mask;
    const int64_t *seed;
    void *out, *dqkv;
    float *lse, *delta;
    int64_t tokens;
    int32_t sequences, heads, head_dim, dtype, window, warps;
    float scale, keep_scale;
    uint32_t drop_threshold, padding;
};

// Queries and keys of x [tokens, 3, heads, head_dim] rotated, or rotated back, to y; values and tokens of no sequence are
// copied. head_dim: a multiple of 16, of 8 for fp32.
struct ck_rotary_args {
    const void *x;
    const float *cos, *sin;
    const int32_t *cu_seqlens;
    void *y;
    int64_t tokens;
    int32_t sequences, heads, head_dim, dtype, inverse, reserved;
};

// The masked-LM loss of rows [M] over a vocabulary [V]; statistics in fp32, for a mean over `*num_tokens` rows.
//
// ck_loss_count   labels, grad_scale -> num_tokens, share = grad_scale / num_tokens (0 where there are no tokens)
// ck_loss_rows    logits [rows, stride] of rows first .. first + rows - 1 -> lse, stats; with `write` logits become
//                 their gradient times share
// ck_loss_tiles   hidden [M, width] x weight [V, width] -> partials, targets: logits in registers alone; fp16, bf16
// ck_loss_combine partials, targets -> lse, stats
// ck_loss_slice   hidden, weight, lse -> logits [rows, stride]: the gradient times share of columns
//                 first_column .. first_column + columns - 1; fp16, bf16
// ck_loss_finish  stats -> loss, z_loss, num_correct
struct ck_loss_args {
    void *logits;
    const void *hidden, *weight, *bias;
    const int64_t *labels;
    const float *grad_scale;
    float *share, *lse, *stats;    // lse [M]; stats [3][M]: loss, z term, hit
    float *partials, *targets;     // partials [splits][3][M]: maximum, sum of exponentials, sum; targets [M]
    float *loss, *z_loss;
    int64_t *num_tokens, *num_correct;
    int64_t total, rows, first, stride, ignore_index;  // total: M
    int32_t vocabulary, width, first_column, columns, dtype, bias_dtype, splits, write;
    float z, smoothing, softcap;  // softcap: 0 for none
    int32_t major;                // of the compute capability, which says how much shared memory there is
};

// A launch as the hook sees it.
struct ck_launch {
    const char *symbol;
    uint32_t grid[3], block[3], shared_bytes, argument_bytes;
    const void *arguments;
};

typedef void (*ck_hook)(const ck_launch *);

CK_API int ck_abi(void);
CK_API const char *ck_architectures(void);   // such as "75,80,86"
CK_API const char *ck_error_string(int status);
CK_API int ck_driver_version(void);          // 0 where there is no driver
CK_API void ck_set_launch_hook(ck_hook hook);  // null: launch on the device

CK_API int ck_norm_forward(const ck_norm_args *args, void *stream);
CK_API int ck_norm_backward(const ck_norm_args *args, void *stream);
CK_API int ck_norm_reduce(const ck_reduce_args *args, void *stream);
CK_API int ck_geglu_forward(const ck_geglu_args *args, void *stream);
CK_API int ck_geglu_backward(const ck_geglu_args *args, void *stream);
CK_API int ck_attention_short_forward(const ck_attention_args *args, void *stream);
CK_API int ck_attention_short_backward(const ck_attention_args *args, void *stream);
CK_API int ck_attention_fp32_forward(const ck_attention_args *args, void *stream);
CK_API int ck_attention_fp32_backward(const ck_attention_args *args, void *stream);
CK_API int ck_attention_long_forward(const ck_attention_args *args, void *stream);
CK_API int ck_attention_long_backward(const ck_attention_args *args, void *stream);
CK_API int ck_attention_mid_backward(const ck_attention_args *args, void *stream);
CK_API int ck_rotary(const ck_rotary_args *args, void *stream);
CK_API int ck_loss_count(const ck_loss_args *args, void *stream);
CK_API int ck_loss_rows(const ck_loss_args *args, void *stream);
CK_API int ck_loss_tiles(const ck_loss_args *args, void *stream);
CK_API int ck_loss_combine(const ck_loss_args *args, void *stream);
CK_API int ck_loss_slice(const ck_loss_args *args, void *stream);
CK_API int ck_loss_finish(const ck_loss_args *args, void *stream);
