//! The deliberate faults of the packages whose code the scenarios run.

/// A deliberate fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One of `mm`.
    Mm(mm::mutant::Mutant),
    /// One of `iommu`.
    Iommu(iommu::Mutant),
    /// One of `fs`.
    Fs(fs::mutant::Mutant),
}

/// The variable of each package that chooses a fault, which is read once: a program that is to have another starts itself
/// anew.
pub const VARIABLES: [&str; 3] = ["MM_MUTANT", "IOMMU_MUTANT", "FS_MUTANT"];

impl Fault {
    /// All faults, those of one package side by side.
    pub fn all() -> impl Iterator<Item = Self> {
        let mm = mm::mutant::Mutant::ALL.iter().copied().map(Self::Mm);
        let iommu = iommu::Mutant::ALL.iter().copied().map(Self::Iommu);
        mm.chain(iommu).chain(fs::mutant::Mutant::ALL.iter().copied().map(Self::Fs))
    }

    /// The one of this word.
    pub fn find(name: &str) -> Option<Self> {
        Self::all().find(|fault| fault.name() == name)
    }

    /// Its word, which no other package's fault has.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mm(fault) => fault.name(),
            Self::Iommu(fault) => fault.name(),
            Self::Fs(fault) => fault.name(),
        }
    }

    /// The variable that chooses it.
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Mm(_) => VARIABLES[0],
            Self::Iommu(_) => VARIABLES[1],
            Self::Fs(_) => VARIABLES[2],
        }
    }

    /// What each variable has to hold so that this fault, or none, is the one of this process.
    pub fn environment(fault: Option<Self>) -> impl Iterator<Item = (&'static str, &'static str)> {
        VARIABLES.into_iter().map(move |variable| {
            let fault = fault.filter(|fault| fault.variable() == variable);
            (variable, fault.map_or("", Self::name))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_faults_have_one_word() {
        let words: BTreeSet<_> = Fault::all().map(Fault::name).collect();
        assert_eq!(words.len(), Fault::all().count());
        assert!(words.iter().all(|word| Fault::find(word).is_some_and(|fault| fault.name() == *word)));
    }

    #[test]
    fn one_variable_at_most_is_set() {
        let set = |fault| Fault::environment(fault).filter(|(_, word)| !word.is_empty()).collect::<Vec<_>>();
        assert_eq!(set(None), []);
        assert_eq!(set(Fault::find("no_shootdown")), [("MM_MUTANT", "no_shootdown")]);
        assert_eq!(set(Fault::find("no_invalidation")), [("IOMMU_MUTANT", "no_invalidation")]);
    }
}
