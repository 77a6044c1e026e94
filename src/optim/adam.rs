//! Adam, AdamW (decoupled decay) and AMSGrad.

use super::{Decay, Moments, Rule, hyper};
use crate::float::Real;

hyper! {
    /// Of [`Adam`] and [`AmsGrad`].
    pub struct AdamHyper {
        /// Learning rate.
        lr,
        /// Decay of the first moment.
        beta1,
        /// Decay of the second moment.
        beta2,
        /// Keeps the division finite.
        eps,
        /// 1: eps is added to the uncorrected root ("eps hat": Keras, ONNX, the paper's last remark), 0: to the corrected
        /// one (torch, optax).
        eps_hat,
        /// 0: the moments are used as they are, biased towards 0.
        bias_correction,
        /// 1: AMSGrad takes the maximum of corrected second moments (optax), 0: of raw ones (torch, Keras).
        amsgrad_corrected,
        /// Weight decay.
        weight_decay,
        /// 1: decoupled (AdamW), 0: coupled (L2).
        decoupled_weight_decay,
    }
}

/// Kingma & Ba 2015 (arXiv 1412.6980); with decoupled decay AdamW, Loshchilov & Hutter 2019 (arXiv 1711.05101).
/// state = [m, v], first and second moment, with c1 = 1 - beta1^t and c2 = 1 - beta2^t:
/// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) (g g)`, `p - (lr / c1) (m / (sqrt(v) (1 / sqrt(c2)) + eps))`.
#[derive(Clone, Copy, Debug)]
pub struct Adam<T> {
    decay: Decay<T>,
    moments: Moments<T>,
    /// lr / c1, times sqrt(c2) with eps hat.
    step_size: T,
    /// 1 / sqrt(c2), or 1 with eps hat.
    correction: T,
    eps: T,
}

impl<T: Real> Adam<T> {
    #[inline(always)]
    fn descend(&self, p: T, m: T, v: T) -> T {
        p - self.step_size * (m / (v.sqrt() * self.correction + self.eps))
    }
}

impl<T: Real> Rule<T, 2> for Adam<T> {
    type Hyper = AdamHyper;
    const NAME: &'static str = "adam";
    const STATES: [&'static str; 2] = ["exp_avg", "exp_avg_sq"];

    fn new(h: &AdamHyper, step: u64, _scalars: &mut [f64]) -> Self {
        let correct = |beta: f64| if h.bias_correction != 0.0 { 1.0 - libm::pow(beta, step as f64) } else { 1.0 };
        let (c1, root2) = (correct(h.beta1), correct(h.beta2).sqrt());
        let hat = h.eps_hat != 0.0;
        Adam {
            decay: Decay::new(h.lr, h.weight_decay, h.decoupled_weight_decay),
            moments: Moments::new(h.beta1, h.beta2),
            step_size: T::from_f64(if hat { h.lr * root2 / c1 } else { h.lr / c1 }),
            correction: T::from_f64(if hat { 1.0 } else { 1.0 / root2 }),
            eps: T::from_f64(h.eps),
        }
    }

    #[inline(always)]
    fn update(&self, p: T, g: T, [m, v]: [T; 2]) -> (T, [T; 2]) {
        let (p, g) = self.decay.apply(p, g);
        let [m, v] = self.moments.apply(g, [m, v]);
        (self.descend(p, m, v), [m, v])
    }
}

/// AMSGrad, Reddi, Kale & Kumar 2018 (arXiv 1904.09237). state = [m, v, top]: as [`Adam`], with `top = maximum(top, v)` in
/// the place of `v`. With `amsgrad_corrected`, `top` is the maximum of `v / c2`, and is not corrected again.
#[derive(Clone, Copy, Debug)]
pub struct AmsGrad<T> {
    adam: Adam<T>,
    /// What `v` is multiplied by before the maximum: 1 / c2, or 1.
    before: T,
}

impl<T: Real> Rule<T, 3> for AmsGrad<T> {
    type Hyper = AdamHyper;
    const NAME: &'static str = "amsgrad";
    const STATES: [&'static str; 3] = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"];

    fn new(h: &AdamHyper, step: u64, scalars: &mut [f64]) -> Self {
        let adam = Adam::new(h, step, scalars);
        if h.amsgrad_corrected == 0.0 || h.bias_correction == 0.0 {
            return AmsGrad { adam, before: T::ONE };
        }
        let c2 = 1.0 - libm::pow(h.beta2, step as f64);
        AmsGrad { adam: Adam { correction: T::ONE, ..adam }, before: T::from_f64(1.0 / c2) }
    }

    #[inline(always)]
    fn update(&self, p: T, g: T, [m, v, top]: [T; 3]) -> (T, [T; 3]) {
        let (p, g) = self.adam.decay.apply(p, g);
        let [m, v] = self.adam.moments.apply(g, [m, v]);
        let top = top.maximum(v * self.before);
        (self.adam.descend(p, m, top), [m, v, top])
    }
}
