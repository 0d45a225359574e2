/* Passes over the activations of linear chains (hpo/training/stacking/linear_chain.py) and over weights.

   They compute what several operations of torch compute one after the other, and read each row while it is in the
   core's cache. Activations are [members, units, batch] and contiguous; a row is the batch of one member's unit.
   Vectors have a value for each row; `stride` is the distance between two members' values. Tensors of other shapes are
   contiguous. NULL stands for what a chain lacks. NaN goes through all passes as through torch's operations.

   REAL, the type of sums, statistics and master values, is float or double. VALUE, the type of activations and
   gradients, is the same type, or with BFLOAT16 the upper half of a float. Every function runs in one thread. */

#include <stdint.h>
#include <tgmath.h>

#ifdef BFLOAT16
typedef uint16_t VALUE;

static inline REAL get(VALUE value) {
    union {
        uint32_t bits;
        float real;
    } as = {(uint32_t)value << 16};
    return as.real;
}

static inline VALUE put(REAL real) { /* rounded to the nearest, ties to even */
    union {
        float real;
        uint32_t bits;
    } as = {real};
    uint32_t rounded = as.bits + 0x7FFF + (as.bits >> 16 & 1), nan = -(uint32_t)(real != real);
    return ((rounded & ~nan) | (0x7FC00000 & nan)) >> 16; /* a branch would keep loops from being vectorized */
}
#else
typedef REAL VALUE;

static inline REAL get(VALUE value) { return value; }

static inline VALUE put(REAL real) { return real; }
#endif

#define WORDS 256    /* of random numbers at a time: 2 KB */
#define EXAMPLES 256 /* of a batch at a time */

/* Products, times `weight` plus `shift`, then ReLU. `out` may be the products themselves. With `statistics`
   [3, members, units], products are normalized before, and these written: means, inverse deviations, and means of the
   layer's output, which has a `bias` that the products lack. */
void forward(const VALUE *products, VALUE *out, const REAL *bias, const REAL *weight, const REAL *shift, double eps,
             REAL *statistics, int relu, int64_t members, int64_t units, int64_t batch, int64_t stride) {
    int64_t rows = members * units;
    for (int64_t row = 0; row < rows; row++) {
        const VALUE *x = products + row * batch;
        VALUE *y = out + row * batch;
        int64_t at = row / units * stride + row % units;
        REAL mean = 0, factor = weight ? weight[at] : 1, add = shift ? shift[at] : 0;
        if (statistics) {
            REAL sum = 0, squares = 0;
            for (int64_t i = 0; i < batch; i++) sum += get(x[i]);
            mean = sum / batch;
            for (int64_t i = 0; i < batch; i++) squares += (get(x[i]) - mean) * (get(x[i]) - mean);
            REAL scale = 1 / sqrt(squares / batch + eps);
            statistics[row] = mean;
            statistics[rows + row] = scale;
            statistics[2 * rows + row] = mean + (bias ? bias[at] : 0);
            factor *= scale;
        }
        if (relu)
            for (int64_t i = 0; i < batch; i++) {
                REAL value = (get(x[i]) - mean) * factor + add;
                y[i] = put(value < 0 ? 0 : value);
            }
        else
            for (int64_t i = 0; i < batch; i++) y[i] = put((get(x[i]) - mean) * factor + add);
    }
}

/* Multiply the elements of each member, `count`, by its dropout mask: 0 or `scales` [members].
   The masks are those of `random_words` (hpo/training/randomness.py) for `keys` and `thresholds` [members]. */
void drop(VALUE *out, const int64_t *keys, const int64_t *counters, const int16_t *thresholds, const VALUE *scales,
          int64_t members, int64_t count) {
    union {
        int64_t words[WORDS];
        int16_t numbers[4 * WORDS];
    } random;
    for (int64_t member = 0; member < members; member++)
        for (int64_t start = 0; start < count; start += 4 * WORDS) {
            int64_t size = count - start < 4 * WORDS ? count - start : 4 * WORDS;
            for (int64_t i = 0; i < (size + 3) / 4; i++) {
                int64_t word = (uint64_t)(counters[start / 4 + i] ^ keys[member]) * 0xBF58476D1CE4E5B9u;
                word = (uint64_t)(word ^ (word >> 32)) * 0x94D049BB133111EBu;
                random.words[i] = (uint64_t)word + (uint64_t)(word >> 32);
            }
            VALUE *y = out + member * count + start;
            REAL scale = get(scales[member]);
            int16_t threshold = thresholds[member];
            for (int64_t i = 0; i < size; i++)
                y[i] = put(get(y[i]) * (random.numbers[i] >= threshold ? scale : 0));
        }
}

/* Turn the gradient of a chain's output into that of its products, in place, and write those of weight and shift.
   An output is 0 where ReLU or dropout made it 0; `scales` [members] are the factors of elements that dropout left. */
void backward(VALUE *grads, const VALUE *outputs, const VALUE *products, const REAL *weight, const REAL *statistics,
              const VALUE *scales, VALUE *weight_grad, int64_t weight_stride, VALUE *shift_grad, int64_t shift_stride,
              int relu, int64_t members, int64_t units, int64_t batch, int64_t stride) {
    int64_t rows = members * units;
    for (int64_t row = 0; row < rows; row++) {
        int64_t member = row / units, unit = row % units;
        VALUE *g = grads + row * batch;
        REAL sum = 0;
        if (relu) {
            const VALUE *y = outputs + row * batch;
            REAL scale = scales ? get(scales[member]) : 1;
            for (int64_t i = 0; i < batch; i++) {
                REAL grad = get(g[i]) * scale, value = get(y[i]) <= 0 ? 0 : grad;
                g[i] = put(value);
                sum += get(g[i]); /* as it is used below, so that the gradients of a row still cancel */
            }
        } else
            for (int64_t i = 0; i < batch; i++) sum += get(g[i]);
        if (shift_grad) shift_grad[member * shift_stride + unit] = put(sum);
        if (!weight) continue;
        const VALUE *x = products + row * batch;
        REAL mean = statistics[row], scale = statistics[rows + row], product = 0;
        for (int64_t i = 0; i < batch; i++) product += get(g[i]) * (get(x[i]) - mean);
        weight_grad[member * weight_stride + unit] = put(product * scale);
        REAL factor = weight[member * stride + unit] * scale;
        REAL offset = sum / batch, slope = product * scale * scale / batch;
        for (int64_t i = 0; i < batch; i++)
            g[i] = put(factor * (get(g[i]) - offset - (get(x[i]) - mean) * slope));
    }
}

/* Cross-entropy of logits [members, classes, batch], for labels [batch] of all members, or [members, batch] with a
   `label_stride`: the losses [members, batch], their gradients with respect to the logits unless NULL, and the number of
   examples whose label has the first of the largest logits. A label that is no class has the loss NaN. */
void cross_entropy(const REAL *logits, const int64_t *labels, int64_t label_stride, REAL *losses, REAL *grads,
                   int64_t *correct, int64_t members, int64_t classes, int64_t batch) {
    REAL largest[EXAMPLES], predicted[EXAMPLES], sums[EXAMPLES];
    for (int64_t member = 0; member < members; member++) {
        correct[member] = 0;
        for (int64_t start = 0; start < batch; start += EXAMPLES) {
            int64_t size = batch - start < EXAMPLES ? batch - start : EXAMPLES;
            const REAL *x = logits + member * classes * batch + start;
            const int64_t *label = labels + member * label_stride + start;
            REAL *loss = losses + member * batch + start;
            REAL *g = grads ? grads + member * classes * batch + start : 0;
            for (int64_t i = 0; i < size; i++) {
                largest[i] = x[i];
                predicted[i] = sums[i] = 0;
            }
            for (int64_t c = 1; c < classes; c++)
                for (int64_t i = 0; i < size; i++) {
                    int larger = x[c * batch + i] > largest[i] || (isnan(x[c * batch + i]) && !isnan(largest[i]));
                    largest[i] = larger ? x[c * batch + i] : largest[i];
                    predicted[i] = larger ? c : predicted[i];
                }
            for (int64_t c = 0; c < classes; c++)
                for (int64_t i = 0; i < size; i++) {
                    REAL value = exp(x[c * batch + i] - largest[i]);
                    sums[i] += value;
                    if (g) g[c * batch + i] = value;
                }
            for (int64_t i = 0; i < size; i++) {
                int valid = label[i] >= 0 && label[i] < classes;
                loss[i] = valid ? log(sums[i]) + largest[i] - x[label[i] * batch + i] : (REAL)NAN;
                correct[member] += predicted[i] == label[i];
            }
            for (int64_t c = 0; g && c < classes; c++)
                for (int64_t i = 0; i < size; i++) g[c * batch + i] = g[c * batch + i] / sums[i] - (label[i] == c);
        }
    }
}

/* Updates of values [members, count] with gradients, which are multiplied by `clips` [members] first. Hyperparameters are
   [members], those of the rules in hpo/training/optimizers/rules.py. `copies` are the values as VALUE. Clips, decays and
   copies may be NULL. */

void descend(REAL *restrict values, const VALUE *restrict grads, VALUE *restrict copies, const REAL *rates,
             const REAL *clips, const REAL *decays, int64_t members, int64_t count) {
    for (int64_t member = 0; member < members; member++) {
        REAL rate = rates[member], clip = clips ? clips[member] : 1, decay = decays ? decays[member] : 0;
        for (int64_t i = member * count; i < (member + 1) * count; i++) {
            values[i] -= rate * (clip * get(grads[i]) + decay * values[i]);
            if (copies) copies[i] = put(values[i]);
        }
    }
}

void descend_with_momentum(REAL *restrict values, const VALUE *restrict grads, VALUE *restrict copies,
                           REAL *restrict velocities, const REAL *rates, const REAL *momenta, const REAL *clips,
                           const REAL *decays, int nesterov, int64_t members, int64_t count) {
    for (int64_t member = 0; member < members; member++) {
        REAL rate = rates[member], momentum = momenta[member];
        REAL clip = clips ? clips[member] : 1, decay = decays ? decays[member] : 0;
        REAL of_grad = nesterov ? 1 : 0, of_velocity = nesterov ? momentum : 1;
        for (int64_t i = member * count; i < (member + 1) * count; i++) {
            REAL grad = clip * get(grads[i]) + decay * values[i];
            velocities[i] = momentum * velocities[i] + grad;
            values[i] -= rate * (of_grad * grad + of_velocity * velocities[i]);
            if (copies) copies[i] = put(values[i]);
        }
    }
}

void adam(REAL *restrict values, const VALUE *restrict grads, VALUE *restrict copies, REAL *restrict means,
          REAL *restrict squares, const REAL *rates, const REAL *betas1, const REAL *betas2, const REAL *eps,
          const REAL *clips, const REAL *decays, int decoupled, int64_t step, int64_t members, int64_t count) {
    for (int64_t member = 0; member < members; member++) {
        REAL beta1 = betas1[member], beta2 = betas2[member], least = eps[member];
        REAL clip = clips ? clips[member] : 1, decay = decays ? decays[member] : 0;
        REAL kept = decoupled ? 1 - rates[member] * decay : 1, added = decoupled ? 0 : decay;
        REAL rate = rates[member] / (1 - pow((double)beta1, step)), scale = 1 / sqrt(1 - pow((double)beta2, step));
        for (int64_t i = member * count; i < (member + 1) * count; i++) {
            REAL grad = clip * get(grads[i]) + added * values[i];
            means[i] = beta1 * means[i] + (1 - beta1) * grad;
            squares[i] = beta2 * squares[i] + (1 - beta2) * grad * grad;
            values[i] = kept * values[i] - rate * (means[i] / (sqrt(squares[i]) * scale + least));
            if (copies) copies[i] = put(values[i]);
        }
    }
}

/* AdaGrad sums the squares of the gradients, RMSprop averages them with the factors `alphas`. */
void descend_scaled(REAL *restrict values, const VALUE *restrict grads, VALUE *restrict copies, REAL *restrict squares,
                    const REAL *rates, const REAL *alphas, const REAL *eps, const REAL *clips, const REAL *decays,
                    int adagrad, int64_t members, int64_t count) {
    for (int64_t member = 0; member < members; member++) {
        REAL rate = rates[member], least = eps[member];
        REAL clip = clips ? clips[member] : 1, decay = decays ? decays[member] : 0;
        REAL kept = adagrad ? 1 : alphas[member], added = adagrad ? 1 : 1 - alphas[member];
        for (int64_t i = member * count; i < (member + 1) * count; i++) {
            REAL grad = clip * get(grads[i]) + decay * values[i];
            squares[i] = kept * squares[i] + added * grad * grad;
            values[i] -= rate * grad / (sqrt(squares[i]) + least);
            if (copies) copies[i] = put(values[i]);
        }
    }
}

void lion(REAL *restrict values, const VALUE *restrict grads, VALUE *restrict copies, REAL *restrict means,
          const REAL *rates, const REAL *betas1, const REAL *betas2, const REAL *clips, const REAL *decays,
          int64_t members, int64_t count) {
    for (int64_t member = 0; member < members; member++) {
        REAL rate = rates[member], beta1 = betas1[member], beta2 = betas2[member];
        REAL clip = clips ? clips[member] : 1, kept = decays ? 1 - rate * decays[member] : 1;
        for (int64_t i = member * count; i < (member + 1) * count; i++) {
            REAL grad = clip * get(grads[i]), update = beta1 * means[i] + (1 - beta1) * grad;
            REAL sign = update > 0 ? 1 : update < 0 ? -1 : update; /* NaN stays NaN */
            values[i] = kept * values[i] - rate * sign;
            means[i] = beta2 * means[i] + (1 - beta2) * grad;
            if (copies) copies[i] = put(values[i]);
        }
    }
}
