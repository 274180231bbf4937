//! The two services: who calls, one call into the role, the decision's audit record.
//!
//! Deliberately absent: rules. They are in the role's other files.

use tonic::{Request, Response, Status};
use wardline_proto::convert::ids;
use wardline_proto::v1::directory_service_server::DirectoryService;
use wardline_proto::v1::session_service_server::SessionService;
use wardline_proto::v1::*;
use wardline_runtime::{Caller, Refusal};

use crate::Directory;

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: Result<T, Refusal>) -> Answer<T> {
    result.map(Response::new).map_err(Status::from)
}

/// The caller and the request's message.
fn open<T>(request: Request<T>) -> Result<(Caller, T), Refusal> {
    Ok((Caller::of(&request)?, request.into_inner()))
}

/// What an audit record is about: the id, if it is one.
fn subject(id: &str) -> Option<[u8; 16]> {
    ids::request(id, "id").ok()
}

#[tonic::async_trait]
impl SessionService for Directory {
    async fn get_server_info(&self, _: Request<GetServerInfoRequest>) -> Answer<GetServerInfoResponse> {
        answer(Ok(self.role.server_info()))
    }

    async fn create_session(&self, request: Request<CreateSessionRequest>) -> Answer<CreateSessionResponse> {
        answer(self.role.create_session(request.get_ref()).await)
    }

    async fn delete_session(&self, request: Request<DeleteSessionRequest>) -> Answer<DeleteSessionResponse> {
        let (caller, _) = open(request)?;
        answer(self.role.delete_session(&caller).await)
    }
}

#[tonic::async_trait]
impl DirectoryService for Directory {
    async fn create_tenant(&self, request: Request<CreateTenantRequest>) -> Answer<CreateTenantResponse> {
        let (caller, request) = open(request)?;
        let about = request.tenant.as_ref().and_then(|tenant| subject(&tenant.id));
        let result = self.role.create_tenant(&caller, request).await;
        let result = self.role.audited("create_tenant", Some(&caller), about.as_ref(), result);
        answer(result.map(|tenant| CreateTenantResponse { tenant: Some(tenant) }))
    }

    async fn get_tenant(&self, request: Request<GetTenantRequest>) -> Answer<GetTenantResponse> {
        let (caller, request) = open(request)?;
        let result = self.role.get_tenant(&caller, &request.tenant_id).await;
        answer(result.map(|tenant| GetTenantResponse { tenant: Some(tenant) }))
    }

    async fn create_user(&self, request: Request<CreateUserRequest>) -> Answer<CreateUserResponse> {
        let (caller, request) = open(request)?;
        let result = self.role.create_user(&caller, request).await;
        let about = result.as_ref().ok().and_then(|user| subject(&user.id));
        let result = self.role.audited("create_user", Some(&caller), about.as_ref(), result);
        answer(result.map(|user| CreateUserResponse { user: Some(user) }))
    }

    async fn get_user(&self, request: Request<GetUserRequest>) -> Answer<GetUserResponse> {
        let (caller, request) = open(request)?;
        let result = self.role.get_user(&caller, &request.user_id).await;
        answer(result.map(|user| GetUserResponse { user: Some(user) }))
    }

    async fn deactivate_user(&self, request: Request<DeactivateUserRequest>) -> Answer<DeactivateUserResponse> {
        let (caller, request) = open(request)?;
        let about = subject(&request.user_id);
        let result = self.role.deactivate_user(&caller, &request).await;
        let result = self.role.audited("deactivate_user", Some(&caller), about.as_ref(), result);
        answer(result.map(|user| DeactivateUserResponse { user: Some(user) }))
    }

    async fn enroll_device(&self, request: Request<EnrollDeviceRequest>) -> Answer<EnrollDeviceResponse> {
        let (caller, request) = open(request)?;
        let about = request.device.as_ref().and_then(|device| subject(&device.id));
        let result = self.role.enroll_device(&caller, request).await;
        let result = self.role.audited("enroll_device", Some(&caller), about.as_ref(), result);
        answer(result.map(|device| EnrollDeviceResponse { device: Some(device) }))
    }

    async fn get_device(&self, request: Request<GetDeviceRequest>) -> Answer<GetDeviceResponse> {
        let (caller, request) = open(request)?;
        let result = self.role.get_device(&caller, &request).await;
        answer(result.map(|device| GetDeviceResponse { device: Some(device) }))
    }

    async fn list_devices(&self, request: Request<ListDevicesRequest>) -> Answer<ListDevicesResponse> {
        let (caller, request) = open(request)?;
        answer(self.role.list_devices(&caller, &request).await)
    }

    async fn revoke_device(&self, request: Request<RevokeDeviceRequest>) -> Answer<RevokeDeviceResponse> {
        let (caller, request) = open(request)?;
        let about = subject(&request.device_id);
        let result = self.role.revoke_device(&caller, &request).await;
        let result = self.role.audited("revoke_device", Some(&caller), about.as_ref(), result);
        answer(result.map(|device| RevokeDeviceResponse { device: Some(device) }))
    }

    async fn list_device_log(&self, request: Request<ListDeviceLogRequest>) -> Answer<ListDeviceLogResponse> {
        let (caller, request) = open(request)?;
        answer(self.role.list_device_log(&caller, &request).await)
    }

    async fn publish_key_packages(
        &self,
        request: Request<PublishKeyPackagesRequest>,
    ) -> Answer<PublishKeyPackagesResponse> {
        let (caller, request) = open(request)?;
        answer(self.role.publish_key_packages(&caller, &request).await)
    }

    async fn claim_key_packages(&self, request: Request<ClaimKeyPackagesRequest>) -> Answer<ClaimKeyPackagesResponse> {
        let (caller, request) = open(request)?;
        let result = self.role.claim_key_packages(&caller, &request).await;
        answer(self.role.audited("claim_key_packages", Some(&caller), None, result))
    }

    async fn get_key_package_status(
        &self,
        request: Request<GetKeyPackageStatusRequest>,
    ) -> Answer<GetKeyPackageStatusResponse> {
        let (caller, request) = open(request)?;
        answer(self.role.key_package_status(&caller, &request).await)
    }
}
