use crate::capabilities::{Capabilities, Engine, Feature, Profile};
use crate::error::Result;
use crate::spec::{Accelerator, Requirement, Spec};

/// A specification that a backend has been found able to serve in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    spec: Spec,
    capabilities: Capabilities,
    engine: Engine,
}

impl Admitted {
    /// What was asked for.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// What the backend can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The kind of machine it will be.
    pub fn profile(&self) -> Profile {
        self.capabilities.profile
    }

    /// Who will execute the guest.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Why it is that engine, in words for a person.
    ///
    /// Whoever falls back, because a guest never answered, sets the accelerator and chooses again.
    pub fn why_engine(&self) -> String {
        let missing = self.capabilities.engines_missing.get(&Engine::Kvm);
        match (self.spec.machine.accelerator, self.engine) {
            (Accelerator::Auto, Engine::Kvm) => "KVM was measured to work".to_owned(),
            (Accelerator::Auto, Engine::Tcg) => match missing {
                Some(reason) => format!("KVM cannot be used: {reason}"),
                None => "this machine has no other engine".to_owned(),
            },
            (Accelerator::Auto, Engine::Host) => "this machine is a process on the host".to_owned(),
            (accelerator, _) => format!("{accelerator} was asked for"),
        }
    }
}

/// One request that a backend cannot serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The request, such as `cpus 300`.
    pub request: String,
    /// Why it cannot be served.
    pub reason: String,
    /// The other profiles that can serve this request.
    pub served_by: Vec<Profile>,
}

/// Every request that a backend cannot serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusals {
    /// The profile that refuses.
    pub profile: Profile,
    /// At least one refusal.
    pub list: Vec<Refusal>,
}

impl std::fmt::Display for Refusals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} cannot serve ", self.profile)?;
        for (index, refusal) in self.list.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", refusal.request, refusal.reason)?;
            for (index, profile) in refusal.served_by.iter().enumerate() {
                write!(f, "{}{profile}", if index == 0 { " (served by " } else { ", " })?;
            }
            if !refusal.served_by.is_empty() {
                f.write_str(")")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Refusals {}

/// Decides whether a backend can serve all that a specification asks for, and lists all it cannot.
///
/// [`choose`] also says who could.
pub fn admit(spec: &Spec, capabilities: &Capabilities) -> Result<Admitted, Refusals> {
    let mut list = refusals(spec, capabilities);
    match engine(spec, capabilities) {
        Ok(engine) if list.is_empty() => {
            Ok(Admitted { spec: spec.clone(), capabilities: capabilities.clone(), engine })
        }
        Ok(_) => Err(Refusals { profile: capabilities.profile, list }),
        Err(refusal) => {
            list.push(refusal);
            Err(Refusals { profile: capabilities.profile, list })
        }
    }
}

/// Validates a specification and admits it to the first of the candidates that can serve it.
///
/// A specification that names a profile is admitted to that one or to none. A refusal names the
/// candidates that can serve each single request. The fake profile is taken only where it is named.
pub fn choose(spec: &Spec, candidates: &[Capabilities]) -> Result<Admitted> {
    spec.validate()?;
    let eligible = |candidate: &&Capabilities| match spec.profile {
        Some(profile) => candidate.profile == profile,
        None => candidate.profile != Profile::Fake,
    };
    let mut first = None;
    for candidate in candidates.iter().filter(eligible) {
        match admit(spec, candidate) {
            Ok(admitted) => return Ok(admitted),
            Err(refusals) => first = first.or(Some(refusals)),
        }
    }
    let mut refusals = first.unwrap_or_else(|| absent(spec));
    for refusal in &mut refusals.list {
        let serves = |candidate: &&Capabilities| {
            candidate.profile != refusals.profile && !asks(spec, candidate).contains(&refusal.request)
        };
        refusal.served_by =
            candidates.iter().filter(serves).map(|c| c.profile).filter(|p| *p != Profile::Fake).collect();
    }
    Err(refusals.into())
}

/// The refusal where the wanted profile is not among the candidates.
fn absent(spec: &Spec) -> Refusals {
    let profile = spec.profile.unwrap_or(Profile::QemuMicrovm);
    let refusal = Refusal {
        request: format!("profile {profile}"),
        reason: "it is not available on this host".to_owned(),
        served_by: Vec::new(),
    };
    Refusals { profile, list: vec![refusal] }
}

/// The requests that a candidate cannot serve.
fn asks(spec: &Spec, candidate: &Capabilities) -> Vec<String> {
    let engine = engine(spec, candidate).err();
    refusals(spec, candidate).into_iter().chain(engine).map(|refusal| refusal.request).collect()
}

fn refusal(request: String, reason: impl Into<String>) -> Refusal {
    Refusal { request, reason: reason.into(), served_by: Vec::new() }
}

/// Everything but the engine.
fn refusals(spec: &Spec, capabilities: &Capabilities) -> Vec<Refusal> {
    let mut list = Vec::new();
    if let Some(profile) = spec.profile.filter(|profile| *profile != capabilities.profile) {
        list.push(refusal(format!("profile {profile}"), "it is another kind of machine"));
    }
    sizes(spec, capabilities, &mut list);
    for (index, disk) in spec.disks.iter().enumerate() {
        let formats = std::iter::once(disk.format).chain(disk.backing.iter().map(|b| b.format));
        for format in formats.filter(|format| !capabilities.disk_formats.contains(format)) {
            list.push(refusal(format!("disk {index} as {format}"), "it does not read this format"));
        }
    }
    if spec.agent && !capabilities.agent {
        list.push(refusal("agent channel".to_owned(), "it has none"));
    }
    if spec.console && !capabilities.console {
        list.push(refusal("console".to_owned(), "it has none"));
    }
    abilities(spec, capabilities, &mut list);
    list
}

fn sizes(spec: &Spec, capabilities: &Capabilities, list: &mut Vec<Refusal>) {
    let limits = &capabilities.limits;
    if spec.machine.cpus > limits.cpus {
        list.push(refusal(format!("cpus {}", spec.machine.cpus), format!("it has at most {}", limits.cpus)));
    }
    let memory = spec.machine.memory;
    if memory < limits.memory_min {
        let reason = format!("it needs at least {}", limits.memory_min);
        list.push(refusal(format!("memory {memory}"), reason));
    }
    if memory > limits.memory_max {
        let reason = format!("it has at most {}", limits.memory_max);
        list.push(refusal(format!("memory {memory}"), reason));
    }
    if spec.disks.len() > limits.disks {
        let request = format!("{} disks", spec.disks.len());
        list.push(refusal(request, format!("it has at most {}", limits.disks)));
    }
    let cmdline = spec.boot.cmdline.len();
    if cmdline > limits.cmdline {
        let reason = format!("it leaves {} bytes to the caller", limits.cmdline);
        list.push(refusal(format!("kernel command line of {cmdline} bytes"), reason));
    }
}

fn abilities(spec: &Spec, capabilities: &Capabilities, list: &mut Vec<Refusal>) {
    for requirement in spec.requires.difference(&capabilities.offers) {
        // The engine decides this one, and says why.
        if *requirement == Requirement::HardwareVirtualization {
            continue;
        }
        let reason = capabilities.lacks.get(requirement).map_or("it has no such ability", String::as_str);
        list.push(refusal(requirement.to_string(), reason));
    }
    let wanted = wanted(spec, capabilities);
    for exclusion in &capabilities.exclusions {
        if wanted.contains(&exclusion.one) && wanted.contains(&exclusion.other) {
            let request = format!("{} with {}", exclusion.one, exclusion.other);
            list.push(refusal(request, exclusion.reason.as_str()));
        }
    }
}

/// What a specification asks for, as far as exclusions can name it.
fn wanted(spec: &Spec, capabilities: &Capabilities) -> Vec<Feature> {
    let mut wanted: Vec<_> = spec.requires.iter().copied().map(Feature::Ability).collect();
    wanted.extend(engine(spec, capabilities).ok().map(Feature::Engine));
    wanted.extend((!spec.disks.is_empty()).then_some(Feature::Disks));
    wanted.extend(spec.agent.then_some(Feature::Agent));
    wanted.extend(spec.console.then_some(Feature::Console));
    wanted
}

/// Decides who executes the guest.
fn engine(spec: &Spec, capabilities: &Capabilities) -> Result<Engine, Refusal> {
    let hardware = spec.requires.contains(&Requirement::HardwareVirtualization);
    let request = match spec.machine.accelerator {
        Accelerator::Auto if hardware => Requirement::HardwareVirtualization.to_string(),
        accelerator => format!("accelerator {accelerator}"),
    };
    let missing = |engine| {
        let reason = capabilities.engines_missing.get(&engine);
        refusal(request.clone(), reason.map_or("it has no such engine", String::as_str))
    };
    let has = |engine| if capabilities.engines.contains(&engine) { Ok(engine) } else { Err(missing(engine)) };
    match spec.machine.accelerator {
        Accelerator::Kvm => has(Engine::Kvm),
        Accelerator::Auto if hardware => has(Engine::Kvm),
        Accelerator::Tcg if hardware => {
            Err(refusal(request, "hardware virtualization is required as well, and TCG is not"))
        }
        Accelerator::Tcg => has(Engine::Tcg),
        Accelerator::Auto => {
            capabilities.engines.first().copied().ok_or_else(|| refusal(request, "no engine works"))
        }
    }
}

#[cfg(test)]
mod tests;
