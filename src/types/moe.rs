//! Options of the router of a mixture of experts.

/// The score that a router gives an expert for its logit `l`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RouterScore {
    /// `exp(l) / Σ exp(l)` over all experts.
    #[default]
    Softmax,
    /// `1 / (1 + exp(-l))`.
    Sigmoid,
}

/// Groups of adjacent experts, of which only some are chosen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExpertGroups {
    /// Groups, all of one size.
    pub count: usize,
    /// Groups that experts are chosen from.
    pub chosen: usize,
}

/// The options of a router, without its correction bias.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoutingParams {
    /// Experts of a token.
    pub top_k: usize,
    /// The score of an expert.
    pub score: RouterScore,
    /// The groups, if there are any.
    pub groups: Option<ExpertGroups>,
    /// Weights are divided by their sum.
    pub renormalise: bool,
    /// The factor of the weights.
    pub scale: f32,
}

impl RoutingParams {
    /// Most experts of a router.
    pub const MAX_EXPERTS: usize = 512;
    /// Most experts of a token.
    pub const MAX_TOP_K: usize = 32;
    /// Most groups of experts.
    pub const MAX_GROUPS: usize = 32;

    /// Experts that can be chosen, of so many.
    pub fn choices(&self, experts: usize) -> usize {
        self.groups.map_or(experts, |groups| experts / groups.count.max(1) * groups.chosen)
    }
}
