//! Splits a configuration by its hosts, so that a host that accepts connections and never answers does not block the
//! others.

use tokio_postgres::{
    Config,
    config::{Host, LoadBalanceHosts},
};
use uuid::Uuid;

/// Returns the configuration of each host, in the order of attempts. Returns the configuration as it is if it names no
/// host, or the numbers of hosts, addresses and ports differ.
pub(super) fn single_host_configs(config: &Config) -> Vec<Config> {
    let (hosts, ports) = (config.get_hosts(), config.get_ports());
    let addresses = config.get_hostaddrs();
    let is_matching = |count: usize, other: usize| other <= 1 || other == count;
    let is_paired = addresses.is_empty() || addresses.len() == hosts.len();
    if !is_paired || !is_matching(hosts.len(), ports.len()) || hosts.is_empty() {
        return vec![config.clone()];
    }
    let single_host = |(index, host): (usize, &Host)| {
        let mut single = without_hosts(config);
        match host {
            Host::Tcp(name) => single.host(name),
            Host::Unix(path) => single.host_path(path),
        };
        if let Some(address) = addresses.get(index) {
            single.hostaddr(*address);
        }
        if let Some(port) = ports.get(index).or(ports.first()) {
            single.port(*port);
        }
        single
    };
    let mut configs: Vec<Config> = hosts.iter().enumerate().map(single_host).collect();
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        configs.sort_by_cached_key(|_| Uuid::new_v4());
    }
    configs
}

/// Returns a configuration without hosts, addresses and ports, which tokio-postgres cannot remove from one.
fn without_hosts(config: &Config) -> Config {
    let mut common = Config::new();
    if let Some(user) = config.get_user() {
        common.user(user);
    }
    if let Some(password) = config.get_password() {
        common.password(password);
    }
    if let Some(name) = config.get_dbname() {
        common.dbname(name);
    }
    if let Some(options) = config.get_options() {
        common.options(options);
    }
    if let Some(name) = config.get_application_name() {
        common.application_name(name);
    }
    if let Some(timeout) = config.get_connect_timeout() {
        common.connect_timeout(*timeout);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        common.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = config.get_keepalives_interval() {
        common.keepalives_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        common.keepalives_retries(retries);
    }
    common
        .ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .target_session_attrs(config.get_target_session_attrs())
        .channel_binding(config.get_channel_binding())
        .load_balance_hosts(config.get_load_balance_hosts());
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        text.parse().unwrap()
    }

    // Rules: TLS-5
    #[test]
    fn each_host_keeps_its_port_address_and_common_options() {
        let common = "user=u password=p dbname=d options=-cx=y application_name=a \
                      sslmode=require sslnegotiation=direct connect_timeout=2 tcp_user_timeout=3 \
                      keepalives=0 keepalives_idle=4 keepalives_interval=5 keepalives_retries=6 \
                      target_session_attrs=read-write channel_binding=require";
        let with_common = |rest: &str| config(&format!("{common} {rest}"));
        assert_eq!(
            single_host_configs(&with_common(
                "host=a,/b hostaddr=10.0.0.1,10.0.0.2 port=1,2"
            )),
            [
                with_common("host=a hostaddr=10.0.0.1 port=1"),
                with_common("host=/b hostaddr=10.0.0.2 port=2")
            ]
        );
        assert_eq!(
            single_host_configs(&with_common("host=a,b port=7")),
            [with_common("host=a port=7"), with_common("host=b port=7")]
        );
        assert_eq!(
            single_host_configs(&with_common("host=a,b")),
            [with_common("host=a"), with_common("host=b")]
        );
    }

    // Rules: TLS-5
    #[test]
    fn mismatched_host_lists_are_passed_through_unchanged() {
        for text in [
            "user=u",
            "host=a,b port=1,2,3",
            "host=a,b hostaddr=10.0.0.1",
        ] {
            assert_eq!(single_host_configs(&config(text)), [config(text)]);
        }
    }

    #[test]
    fn random_load_balancing_shuffles_hosts() {
        let config = config("host=a,b,c load_balance_hosts=random");
        let first_hosts: std::collections::BTreeSet<String> = (0..200)
            .map(|_| format!("{:?}", single_host_configs(&config)[0].get_hosts()))
            .collect();
        assert_eq!(first_hosts.len(), 3);
    }
}
