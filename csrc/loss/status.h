// What every entry point of the family asks of its arguments.
#pragma once

#include "../api.h"

namespace ck {

inline int loss_status(const ck_loss_args &a) {
    if (a.dtype < CK_F32 || a.dtype > CK_BF16) return CK_BAD_DTYPE;
    return a.vocabulary < 1 || a.width < 1 || a.total < 1 ? CK_BAD_SHAPE : 0;
}

}  // namespace ck
