//! LAMB.

use super::{Decay, Moments, Passes, Rule, hyper};
use crate::float::Real;

hyper! {
    /// Of [`Lamb`].
    pub struct LambHyper {
        /// Learning rate.
        lr,
        /// Decay of the first moment.
        beta1,
        /// Decay of the second moment.
        beta2,
        /// Keeps the division finite.
        eps,
        /// 0: the moments are used as they are, biased towards 0.
        bias_correction,
        /// 0: arrays without weight decay get the ratio 1 (apex, timm).
        always_adapt,
        /// 1: the ratio is at most 1 (timm's `trust_clip`, "LAMBC").
        trust_clip,
        /// The parameter's norm counts as at most this.
        max_param_norm,
        /// 1: eps is added to the norm of the direction too.
        eps_in_ratio,
        /// Weight decay.
        weight_decay,
        /// 1: the decay is part of the direction, before the norms (the paper); 0: coupled or decoupled, as below, and done
        /// before the norms are taken (timm's `decoupled_decay`).
        weight_decay_in_ratio,
        /// 1: decoupled, 0: coupled (L2), if not in the ratio.
        decoupled_weight_decay,
    }
}

/// You et al. 2020 (arXiv 1904.00962). state = [m, v], moments as in Adam, c1 = 1 - beta1^t, c2 = 1 - beta2^t:
/// `u = (m (1 / c1)) / (sqrt(v) (1 / sqrt(c2)) + eps) + weight_decay p`, `r = |p| / |u|` (1 if either is 0),
/// `p - (lr r) u`.
#[derive(Clone, Copy, Debug)]
pub struct Lamb<T> {
    decay: Decay<T>,
    moments: Moments<T>,
    correction1: T,
    correction2: T,
    eps: T,
    in_direction: bool,
    weight_decay: T,
    step_size: T,
    hyper: LambHyper,
}

impl<T: Real> Lamb<T> {
    #[inline(always)]
    fn direction(&self, p: T, m: T, v: T) -> T {
        let u = (m * self.correction1) / (v.sqrt() * self.correction2 + self.eps);
        if self.in_direction { u + self.weight_decay * p } else { u }
    }
}

impl<T: Real> Rule<T, 2> for Lamb<T> {
    type Hyper = LambHyper;
    const NAME: &'static str = "lamb";
    const STATES: [&'static str; 2] = ["exp_avg", "exp_avg_sq"];
    const PASSES: Passes = Passes::StateThenParam;

    fn new(h: &LambHyper, step: u64, _scalars: &mut [f64]) -> Self {
        let correct = |beta: f64| if h.bias_correction != 0.0 { 1.0 - libm::pow(beta, step as f64) } else { 1.0 };
        let in_ratio = h.weight_decay_in_ratio != 0.0;
        Lamb {
            decay: Decay::new(h.lr, if in_ratio { 0.0 } else { h.weight_decay }, h.decoupled_weight_decay),
            moments: Moments::new(h.beta1, h.beta2),
            correction1: T::from_f64(1.0 / correct(h.beta1)),
            correction2: T::from_f64(1.0 / correct(h.beta2).sqrt()),
            eps: T::from_f64(h.eps),
            in_direction: in_ratio && h.weight_decay != 0.0,
            weight_decay: T::from_f64(h.weight_decay),
            step_size: T::from_f64(h.lr),
            hyper: *h,
        }
    }

    #[inline(always)]
    fn measure(&self, p: T, g: T, [m, v]: [T; 2]) -> ([T; 2], [T; 2]) {
        let (shrunk, g) = self.decay.apply(p, g);
        let [m, v] = self.moments.apply(g, [m, v]);
        ([shrunk, self.direction(p, m, v)], [m, v])
    }

    fn with_norms(self, [param_norm, direction_norm]: [f64; 2]) -> Self {
        let h = &self.hyper;
        let param_norm = if param_norm > h.max_param_norm { h.max_param_norm } else { param_norm };
        let adapts = h.always_adapt != 0.0 || h.weight_decay != 0.0;
        let ratio = if adapts && param_norm != 0.0 && direction_norm != 0.0 {
            param_norm / if h.eps_in_ratio != 0.0 { direction_norm + h.eps } else { direction_norm }
        } else {
            1.0
        };
        let ratio = if h.trust_clip != 0.0 && ratio > 1.0 { 1.0 } else { ratio };
        Lamb { step_size: T::from_f64(h.lr * ratio), ..self }
    }

    #[inline(always)]
    fn update(&self, p: T, _g: T, [m, v]: [T; 2]) -> (T, [T; 2]) {
        let u = self.direction(p, m, v);
        let (p, _) = self.decay.apply(p, T::ZERO);
        (p - self.step_size * u, [m, v])
    }
}
