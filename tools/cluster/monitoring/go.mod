module modelpress.dev/tools/cluster/monitoring

go 1.21

// Its zip holds the CustomResourceDefinitions of ServiceMonitor and PrometheusRule; nothing of it is built.
require github.com/prometheus-operator/prometheus-operator v0.82.0
